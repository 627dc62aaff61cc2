"""What zhlm's training is measured against: the loops that one would write by hand, with none of its training code.

Every one trains the same adapter on the same blocks in the same order: LoRA on the linear layers, embeddings and head as a whole, AdamW at
a constant rate. Shape letters: B blocks, T block tokens, V vocabulary.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from zhlm.blocks.read import BlockReader
from zhlm.config.schema import RunConfig
from zhlm.records import Blocks
from zhlm.storage import Run

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TABLES = ["embed_tokens", "lm_head"]
IGNORED = -100

Inputs = dict[str, torch.Tensor]
EachStep = Callable[[int, float, float], None]
"""Called after each step with its number (from 1), its seconds, and the mean loss of its targets in nats, on this rank."""


def inputs_of(blocks: Blocks) -> Inputs:
    """As transformers takes packed documents: positions that restart, and labels that the model shifts by itself."""
    ids_BT = torch.from_numpy(blocks.ids_BT.astype(np.int64))
    positions_BT, labels_BT = torch.zeros_like(ids_BT), ids_BT.clone()
    for row, ends in enumerate(blocks.ends):
        start = 0
        for end in [*ends.tolist(), ids_BT.shape[1]]:
            positions_BT[row, start:end] = torch.arange(end - start)
            labels_BT[row, start : start + 1] = IGNORED  # nothing before a document's first token predicts it
            start = end
        labels_BT[row, int(ends[-1]) :] = IGNORED
    return {"input_ids": ids_BT, "position_ids": positions_BT, "labels": labels_BT}


def all_steps(config: RunConfig, steps: int) -> Iterator[Inputs]:
    """The global batch of each step, from the block store."""
    size = config.train.global_batch_blocks
    reader = BlockReader(Run.of(config), {s.name: s.weight for s in config.streams}, "train", config.seed)
    for step in range(steps):
        yield inputs_of(reader.read(range(step * size, (step + 1) * size)))


def passes_of(batch: Inputs, config: RunConfig, rank: int, world_size: int, device: str) -> list[Inputs]:
    """What one rank does of a global batch, some blocks at a time."""
    own = {name: t[rank::world_size].to(device) for name, t in batch.items()}
    parts = [t.split(config.train.micro_batch_blocks) for t in own.values()]
    return [dict(zip(own, part, strict=True)) for part in zip(*parts, strict=True)]


def adapted(config: RunConfig) -> Any:
    """The base with a fresh adapter, or wholly trainable where the config has no LoRA."""
    from transformers import AutoModelForCausalLM

    train = config.train
    dtype = torch.bfloat16 if train.precision == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(config.base.model, dtype=dtype)
    if train.lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(config.seed)
    tables = TABLES if train.embeddings == "all" else None
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=train.lora.r, lora_alpha=train.lora.alpha, lora_dropout=train.lora.dropout,
        target_modules=LINEAR, modules_to_save=tables, ensure_weight_tying=tables is not None and model.config.tie_word_embeddings,
    )  # fmt: skip
    return get_peft_model(model, lora)


def adamw(model: torch.nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """Matrices decay, embeddings and vectors do not."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    free = [p for name, p in named if p.ndim < 2 or any(table in name for table in TABLES)]
    decayed = [p for _, p in named if not any(p is f for f in free)]
    groups = [{"params": decayed, "weight_decay": config.train.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.train.learning_rate, betas=config.train.betas)


def sum_nats(model: torch.nn.Module, batch: Inputs) -> torch.Tensor:
    """Summed cross-entropy of the labels of one pass."""
    logits_BTV = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


class Torch:
    """A model, AdamW, and DistributedDataParallel where there is more than one rank."""

    def __init__(self, config: RunConfig, world_size: int, device: str) -> None:
        self.model = adapted(config).to(device).train()
        self.optimizer = adamw(self.model, config)
        self._most_norm = config.train.max_grad_norm
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self.forward = torch.nn.parallel.DistributedDataParallel(self.model) if world_size > 1 else self.model

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        loss.backward()
        if not last:
            return
        if self._most_norm:
            torch.nn.utils.clip_grad_norm_(self._trained, self._most_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Moved(Torch):
    """The same from weights that differ by rounding: how far two losses part that are computed alike."""

    def __init__(self, config: RunConfig, world_size: int, device: str) -> None:
        super().__init__(config, world_size, device)
        with torch.no_grad():
            for parameter in self._trained:
                parameter *= 1 + torch.finfo(torch.float32).eps


class DeepSpeed:
    """The same under ZeRO, as DeepSpeed's own examples do it."""

    def __init__(self, config: RunConfig, world_size: int, device: str) -> None:
        os.environ["DS_ACCELERATOR"] = "cuda" if device == "cuda" else "cpu"
        import deepspeed

        if device == "cpu":
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo needs none, and it takes a minute to build
        train = config.train
        model = adapted(config).to(device).train()
        settings = {
            "train_micro_batch_size_per_gpu": train.micro_batch_blocks,
            "gradient_accumulation_steps": train.global_batch_blocks // train.micro_batch_blocks // world_size,
            "zero_optimization": {"stage": train.zero_stage},
            "gradient_clipping": train.max_grad_norm or 0.0,
            "bf16": {"enabled": train.precision == "bfloat16"},
            "steps_per_print": 10**9,
        }
        self.forward, *_ = deepspeed.initialize(model=model, optimizer=adamw(model, config), config=settings)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.forward.backward(loss, scale_wrt_gas=False)
        self.forward.step()


def train(kind: type[Torch | DeepSpeed], config: RunConfig, steps: int, each_step: EachStep, device: str = "cpu") -> Any:
    """Train on tensors that are all there before the first step. Returns what was trained."""
    rank, world_size = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    engine = kind(config, world_size, device)
    batches = list(all_steps(config, steps))
    targets = [int((b["labels"] != IGNORED).sum()) for b in batches]
    dealt = [passes_of(b, config, rank, world_size, device) for b in batches]
    for step, passes in enumerate(dealt):
        started_s = time.monotonic()
        loss = 0.0
        for number, batch in enumerate(passes):
            nats = sum_nats(engine.forward, batch)
            engine.backward(nats * (world_size / targets[step]), number == len(passes) - 1)
            loss += float(nats.detach()) / targets[step]
        each_step(step + 1, time.monotonic() - started_s, loss)
    return engine


def transformers_trainer(config: RunConfig, steps: int, each_step: EachStep, *, deepspeed: bool, device: str = "cpu") -> None:
    """transformers' Trainer on the same blocks, with its DeepSpeed integration or without."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import TrainerCallback

    settings, micro = config.train, config.train.micro_batch_blocks
    accumulation = settings.global_batch_blocks // micro
    # Before the model: it sets what DeepSpeed needs to know while a model is loaded.
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="zhlm-bench-"), max_steps=steps, per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation, learning_rate=settings.learning_rate, lr_scheduler_type="constant",
        max_grad_norm=settings.max_grad_norm or 0.0, train_sampling_strategy="sequential", save_strategy="no", report_to="none",
        logging_strategy="no", disable_tqdm=True, use_cpu=device == "cpu", bf16=settings.precision == "bfloat16", seed=config.seed,
        gradient_checkpointing=settings.gradient_checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False},
        deepspeed=zero_of(config) if deepspeed else None,
    )  # fmt: skip
    model = adapted(config)
    if settings.gradient_checkpointing:
        model.enable_input_require_grads()
    losses: list[torch.Tensor] = []

    class Recording(Trainer):  # type: ignore[misc]
        def create_optimizer(self, *_: Any, **__: Any) -> Any:  # with DeepSpeed, one that is handed over is forgotten
            self.optimizer = adamw(self.model, config)
            return self.optimizer

        def compute_loss(self, *given: Any, **named: Any) -> Any:
            loss = super().compute_loss(*given, **named)
            losses.append(loss.detach())
            return loss

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started_s = time.monotonic()

        def on_step_end(self, *given: Any, **_: Any) -> None:
            loss = sum(map(float, losses))  # of the passes of this step, each over the labels of the whole step
            each_step(given[1].global_step, time.monotonic() - self.started_s, loss)
            losses.clear()

    rows = [{name: t[row] for name, t in batch.items()} for batch in all_steps(config, steps) for row in range(len(batch["labels"]))]
    Recording(model, arguments, train_dataset=rows, callbacks=[Told()]).train()


def zero_of(config: RunConfig) -> dict[str, Any]:
    """A DeepSpeed dict as transformers' documentation gives it."""
    return {
        "zero_optimization": {"stage": config.train.zero_stage},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
    }


def ray_train(config: RunConfig, steps: int, folder: Path) -> None:
    """Ray Train around the hand-written loop: DistributedDataParallel, and a checkpoint by torch.save, as its guide shows."""
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchTrainer

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    settings = {"config": config.model_dump_json(), "steps": steps, "told": str(folder / "metrics.jsonl")}
    run_config = RayRunConfig(storage_path=str(folder), failure_config=FailureConfig(max_failures=3))
    TorchTrainer(
        ray_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=config.resources.max_workers),
        run_config=run_config,
    ).fit()


def ray_worker(settings: dict[str, Any]) -> None:
    """One rank of it; rank 0 writes a line per step."""
    import ray.train

    config = RunConfig.model_validate_json(settings["config"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    engine, first = Torch(config, world_size, "cpu"), 0
    if (found := ray.train.get_checkpoint()) is not None:
        with found.as_directory() as kept:
            state = torch.load(f"{kept}/state.pt", weights_only=True)
        engine.model.load_state_dict(state["trained"], strict=False)
        engine.optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step, batch in enumerate(all_steps(config, settings["steps"])):
        if step < first:
            continue
        num_targets = int((batch["labels"] != IGNORED).sum())
        passes = passes_of(batch, config, rank, world_size, "cpu")
        for number, part in enumerate(passes):
            engine.backward(sum_nats(engine.forward, part) * (world_size / num_targets), number == len(passes) - 1)
        if rank == 0:
            with open(settings["told"], "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step + 1, "loss_nats": 0.0}) + "\n")
        if (step + 1) % config.train.checkpoint_every == 0:
            with tempfile.TemporaryDirectory() as kept:
                checkpoint = None
                if rank == 0:
                    trained = {name: p.detach() for name, p in engine.model.named_parameters() if p.requires_grad}
                    torch.save({"step": step + 1, "trained": trained, "optimizer": engine.optimizer.state_dict()}, f"{kept}/state.pt")
                    checkpoint = ray.train.Checkpoint.from_directory(kept)
                ray.train.report({"step": step + 1}, checkpoint=checkpoint)
