"""DeepSpeed behind five verbs: the only module that knows its config, its losses' scaling and its optimizer wrapping."""

import math
import os
from typing import Any

import torch
from torch import distributed

from zhlm.adapt.lora import parameter_groups, trained_parameters
from zhlm.checkpoint import sharded
from zhlm.checkpoint.state import Checkpoint
from zhlm.config.schema import TrainConfig
from zhlm.train.schedule import Share

ONE_FILE_BYTES = 2 << 30
"""A LoRA checkpoint is one file of each kind up to this size; a larger one, and every other, has a file from each worker."""


def deepspeed_config(train: TrainConfig, share: Share, world_size: int) -> dict[str, Any]:
    """The whole DeepSpeed dict. The optimizer and the schedule are ours, so neither appears in it."""
    stage = train.stage_for(world_size)
    zero: dict[str, Any] = {"stage": stage}
    if train.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if train.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": share.micro_blocks,
        "gradient_accumulation_steps": share.accumulation,
        "train_batch_size": share.micro_blocks * share.accumulation * world_size,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW steps offloaded states too, and needs no compiler
        # Without ZeRO `Engine` clips, for DeepSpeed would not tell the norm.
        "gradient_clipping": (train.max_grad_norm or 0.0) if stage else 0.0,
        "bf16": {"enabled": train.precision == "bfloat16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


class Engine:
    """A model under ZeRO with its optimizer."""

    def __init__(self, model: torch.nn.Module, train: TrainConfig, share: Share, device: torch.device) -> None:
        """`model`: on the CPU, or on the device already."""
        deepspeed = _import_deepspeed()
        self._world_size = distributed.get_world_size()
        self._parameters = trained_parameters(model)
        self._is_lora = train.lora is not None
        groups = parameter_groups(model, train)
        self._peak_rates = [g.pop("peak_rate") for g in groups]
        config = deepspeed_config(train, share, self._world_size)
        self._plain = config["zero_optimization"]["stage"] == 0
        self._most_norm, self._norm = train.max_grad_norm or math.inf, 0.0
        if config["zero_optimization"]["stage"] == 3:
            _shard(deepspeed, model, config, device)
        else:
            model.to(device)
        fused = torch.cuda.is_available() and train.offload == "none"
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=train.betas, fused=fused or None)
        if train.compile:
            model.compile()
        self.deepspeed, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        self._adam = optimizer
        sharded.create_moments(optimizer)

    def backward(self, nats: torch.Tensor, num_targets_of_step: int) -> None:
        """Accumulate gradients of the mean over the global batch's targets, in whatever pass and on whatever rank they are.

        DeepSpeed averages over ranks, so the sum is first multiplied by their number; passes are added, not averaged.
        """
        self.deepspeed.backward(nats * (self._world_size / num_targets_of_step), scale_wrt_gas=False)

    def end_pass(self) -> None:
        """DeepSpeed counts passes itself, and steps the optimizer after the last one of a step; not where the gradients are not finite."""
        if self._plain and self.deepspeed.is_gradient_accumulation_boundary():
            self._norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._most_norm))
            if not math.isfinite(self._norm):
                return
        self.deepspeed.step()

    def leave_out(self, step: int) -> None:
        """Nothing moves in this step (from 1), but Adam counts it, as it will when it goes on from a checkpoint."""
        sharded.set_step(self._adam, step)

    def set_rates(self, factor: float) -> None:
        for group, peak in zip(self.deepspeed.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * factor

    def grad_norm(self) -> float | None:
        """Of the last step, before clipping; DeepSpeed may not know it where it does not clip."""
        if self._plain:
            return self._norm
        norm = self.deepspeed.get_global_grad_norm()
        return None if norm is None else float(norm)

    def state_copy(self) -> sharded.StateCopy:
        """Of trained tensors and Adam moments, for saving. Collective; after one mute step."""
        return sharded.StateCopy(self._parameters, self._adam, ONE_FILE_BYTES if self._is_lora else 0)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint, or from nothing; after one mute step in either case. Collective."""
        if checkpoint is None:
            sharded.set_step(self._adam, 0)
            return
        sharded.scatter(self._parameters, self._adam, checkpoint.trainable(), checkpoint.optimizer(), checkpoint.state.step)


def load_trainable(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Put trained tensors into a whole model, before DeepSpeed copies its masters from it."""
    values = checkpoint.trainable()
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            parameter.copy_(values[name])


def _shard(deepspeed: Any, model: torch.nn.Module, config: dict[str, Any], device: torch.device) -> None:
    """Cut a model into the ranks' shards, parameter by parameter: `initialize` alone would move the whole model to the device first."""
    if config["bf16"]["enabled"]:  # as `initialize` does, but not with what is cut already
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    deepspeed.init_distributed(dist_init_required=False)  # else it takes this rank for the only one
    deepspeed.zero.Init(module=model, config_dict_or_path=config)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def _import_deepspeed() -> Any:
    """DeepSpeed chooses its accelerator at import, and on a CPU would compile an operator for a minute that gloo does not need."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
