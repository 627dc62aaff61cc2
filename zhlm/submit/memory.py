"""Memory of one training worker, by part: arithmetic on the model's shape and the run's settings.

Source: the accounting of states by ZeRO stage is that of "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
(Rajbhandari et al., 2020), section 3, with frozen parameters left out of gradients and states.
"""

from dataclasses import dataclass

from zhlm.config.objective import SpanCorruptionConfig
from zhlm.config.remedies import memory_remedies
from zhlm.config.schema import RunConfig
from zhlm.model.shape import ModelShape, parameters
from zhlm.model.trained import trained_sizes
from zhlm.submit.sources import added_rows
from zhlm.train.schedule import Share, share_of

ADAM_BYTES = 8
"""Two fp32 moments for each trained parameter."""
MASTER_BYTES = 4
"""The fp32 copy that ZeRO and mixed precision update."""


@dataclass(frozen=True)
class MemoryPart:
    name: str
    size_bytes: int
    on_host: bool = False
    """In CPU memory, beside a GPU."""
    estimated: bool = False


@dataclass(frozen=True)
class Counts:
    """Parameters by what happens to them."""

    trainable: int
    frozen: int

    @property
    def checkpoint_bytes(self) -> int:
        """fp32 weights and both moments of what is trained; frozen weights are never saved."""
        return self.trainable * (4 + ADAM_BYTES)


def count_parameters(config: RunConfig, shape: ModelShape) -> Counts:
    """Raises: ConfigError for a name or pattern of the train section that matches nothing in the model."""
    total = sum(parameters(shape).values())
    new_rows = added_rows(config) if config.train.embeddings == "new_rows" else 0
    trained = sum(trained_sizes(shape, config.train, new_rows).values())
    # What is trained whole beside LoRA is a copy: the originals stay.
    return Counts(trained, total - trained if config.train.lora is None else total)


def worker_memory(config: RunConfig, shape: ModelShape, workers: int) -> list[MemoryPart]:
    """What one of so many workers holds while it trains, largest moment of a step."""
    train, counts = config.train, count_parameters(config, shape)
    value_bytes = 2 if train.precision == "bfloat16" else 4
    zero = train.stage_for(workers)
    sharded = {stage: workers if zero >= stage else 1 for stage in (1, 2, 3)}
    copied_by = workers if train.lora is None else sharded[1]
    all_weights = (counts.trainable + counts.frozen) * value_bytes
    kept, weights = all_weights // sharded[3], all_weights
    if zero == 3:
        # A layer is gathered whole while it computes; the embedding is the widest one.
        parts = parameters(shape)
        one_block = (parts["attention"] + parts["mlp"]) // sum(shape.blocks.values())
        gathered = max(parts["embeddings"], one_block) * value_bytes
        weights = min(all_weights, gathered if train.offload == "all" else kept + gathered)
    has_master = zero > 0
    states = counts.trainable * (ADAM_BYTES + (MASTER_BYTES if has_master else 0)) // sharded[1]
    share = share_of(train.global_batch_blocks, train.micro_batch_blocks, workers)
    rows = share.micro_blocks * config.pack.block_tokens
    # Softmax needs the logits in fp32, then a gradient of the same size.
    logits = round(rows * _stack_shares(config, shape)[-1]) * shape.vocabulary * (value_bytes + 4 + 4)
    return [
        MemoryPart("weights", weights),
        *([MemoryPart("offloaded weights", kept, on_host=True)] if train.offload == "all" else []),
        MemoryPart("gradients", counts.trainable * value_bytes // sharded[2]),
        MemoryPart("optimizer states", states, on_host=train.offload != "none"),
        MemoryPart("copy for checkpoints", counts.checkpoint_bytes // copied_by, on_host=True),
        MemoryPart("activations", _activation_bytes(config, shape, rows, value_bytes), estimated=True),
        MemoryPart("logits", logits),
        *_mask_parts(config, share, value_bytes),
    ]


def too_large(config: RunConfig, shape: ModelShape, room_bytes: int, where: str) -> str:
    """Why a run with the least workers cannot fit into so much memory for each, as one line; empty where it may.

    Only what is sure counts: activations depend on the kernels, and what is in CPU memory beside a GPU is no part of its memory.
    """
    workers = config.resources.min_workers
    parts = [p for p in worker_memory(config, shape, workers) if not (p.on_host and config.resources.gpus_per_worker) and not p.estimated]
    needed = sum(p.size_bytes for p in parts)
    if needed <= room_bytes:
        return ""
    told = ", ".join(f"{p.name} {p.size_bytes / 2**30:.2f} GiB" for p in sorted(parts, key=lambda p: -p.size_bytes) if p.size_bytes)
    return (
        f"train: each of {workers} workers needs at least {needed / 2**30:.2f} GiB ({told}; activations come on top), "
        f"{where} has {room_bytes / 2**30:.2f} GiB for it; {memory_remedies(config, workers)}"
    )


def _mask_parts(config: RunConfig, share: Share, value_bytes: int) -> list[MemoryPart]:
    """Who sees whom, for each pair of positions: as booleans and as numbers in a pass, and as booleans in the batches of two steps, the one
    that is trained on and the next one. None where positions say it (see objectives/attention.py)."""
    if not (config.objective.name == "prefix" or (config.objective.name == "masked" and config.pack.packing != "none")):
        return []
    pairs = share.micro_blocks * config.pack.block_tokens**2
    return [
        MemoryPart("attention mask", pairs * (1 + value_bytes)),
        MemoryPart("masks made ahead", 2 * share.accumulation * pairs, on_host=True, estimated=True),
    ]


def _activation_bytes(config: RunConfig, shape: ModelShape, rows: int, value_bytes: int) -> int:
    """Inputs and outputs of every layer that backward needs. An assumption: fused kernels keep less, plain attention keeps more."""
    kept = 0.0
    for stack, share in zip(shape.stacks, _stack_shares(config, shape), strict=True):
        of_block = sum(m.inputs + m.outputs for m in stack.linears) + 4 * shape.width
        kept += share * (stack.layers * shape.width + of_block if config.train.gradient_checkpointing else stack.layers * of_block)
    return round(rows * kept) * value_bytes


def _stack_shares(config: RunConfig, shape: ModelShape) -> tuple[float, ...]:
    """Tokens that each list of layers reads, as a share of a block: under span corruption the decoder writes what the encoder lacks, and
    each span has a sentinel on both sides."""
    if not isinstance(config.objective, SpanCorruptionConfig):
        return (1.0,) * len(shape.stacks)
    noise, spans = config.objective.noise_share, config.objective.noise_share / config.objective.mean_span
    return 1 - noise + spans, noise + spans
