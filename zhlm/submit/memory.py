"""Memory of one training worker, by part: arithmetic on the model's shape and the run's settings.

Source: the accounting of states by ZeRO stage is that of "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
(Rajbhandari et al., 2020), section 3, with frozen parameters left out of gradients and states.
"""

from dataclasses import dataclass

from zhlm.config.schema import RunConfig
from zhlm.model.shape import ModelShape, lora_parameters, parameters
from zhlm.submit.sources import added_rows

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
    """Raises: BaseModelError for a LoRA target that no layer has."""
    parts = parameters(shape)
    total = sum(parts.values())
    lora = config.train.lora
    if lora is None:
        return Counts(total, 0)
    # Embeddings and head, or their new rows, are trained as a copy beside the originals.
    rows = {"none": 0, "new_rows": added_rows(config), "all": shape.vocabulary}[config.train.embeddings]
    copied = rows * shape.width * (1 if shape.tied else 2)
    return Counts(lora_parameters(shape, lora.r, lora.targets) + copied, total)


def worker_memory(config: RunConfig, shape: ModelShape, workers: int) -> list[MemoryPart]:
    """What one of so many workers holds while it trains, largest moment of a step."""
    train, counts = config.train, count_parameters(config, shape)
    value_bytes = 2 if train.precision == "bfloat16" else 4
    sharded = {stage: workers if train.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    all_weights = (counts.trainable + counts.frozen) * value_bytes
    weights = all_weights // sharded[3]
    if train.zero_stage == 3:
        # A layer is gathered whole while it computes; the embedding is the widest one.
        parts = parameters(shape)
        one_block = (parts["attention"] + parts["mlp"]) // shape.layers
        weights = min(all_weights, weights + max(parts["embeddings"], one_block) * value_bytes)
    has_master = train.precision == "bfloat16" or train.zero_stage > 0
    states = counts.trainable * (ADAM_BYTES + (MASTER_BYTES if has_master else 0)) // sharded[1]
    rows = train.micro_batch_blocks * config.pack.block_tokens
    # Softmax needs the logits in fp32, then a gradient of the same size.
    logits = rows * shape.vocabulary * (value_bytes + 4 + 4)
    return [
        MemoryPart("weights", weights),
        MemoryPart("gradients", counts.trainable * value_bytes // sharded[2]),
        MemoryPart("optimizer states", states, on_host=train.offload == "optimizer"),
        MemoryPart("activations", _activation_bytes(config, shape, rows, value_bytes), estimated=True),
        MemoryPart("logits", logits),
    ]


def _activation_bytes(config: RunConfig, shape: ModelShape, rows: int, value_bytes: int) -> int:
    """Inputs and outputs of every layer that backward needs. An assumption: fused kernels keep less, plain attention keeps more."""
    of_block = sum(m.inputs + m.outputs for m in shape.linears) + 4 * shape.width
    kept = shape.layers * shape.width + of_block if config.train.gradient_checkpointing else shape.layers * of_block
    return rows * kept * value_bytes
