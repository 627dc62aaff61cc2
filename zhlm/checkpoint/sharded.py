"""Between DeepSpeed's shards and whole tensors by name. Every function here is collective: all ranks call it, in the same order."""

from collections.abc import Mapping

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

from zhlm.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")


def gather(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Whole float32 values and Adam moments of every parameter, on the CPU of every rank."""
    values, moments = {}, {}
    for name, parameter in parameters.items():
        values[name] = _master(parameter).detach().to("cpu", copy=True)
        for key in MOMENTS:
            moments[f"{name}/{key}"] = _moment(parameter, optimizer, key).detach().to("cpu", copy=True)
    return values, moments


def scatter(
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    values: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
    step: int,
) -> None:
    """Put a checkpoint into the shards. The optimizer must have stepped once, because only that creates its moments.

    The weights that the next forward reads must hold these values already: setting a master refreshes them only after a step.
    Raises: CheckpointError when the names differ.
    """
    if set(values) != set(parameters):
        odd = sorted(set(values) ^ set(parameters))[0]
        raise CheckpointError(
            f"checkpoint: it holds {len(values)} tensors, the model trains {len(parameters)}; {odd} is in only one of them"
        )
    for name, parameter in parameters.items():
        if _is_sharded(parameter):
            safe_set_full_fp32_param(parameter, values[name].to(parameter.device))
        else:
            parameter.data.copy_(values[name])
        for key in MOMENTS:
            _set_moment(parameter, optimizer, key, moments[f"{name}/{key}"])
    set_step(optimizer, step)


def create_moments(optimizer: torch.optim.Optimizer) -> None:
    """Zero moments before the first step. DeepSpeed links parameters to their moments while it steps the first group, so that those of the
    other groups would be missing for good."""
    for group in optimizer.param_groups:
        for shard in group["params"]:
            if not optimizer.state[shard]:
                moments = {key: torch.zeros_like(shard, memory_format=torch.preserve_format) for key in MOMENTS}
                optimizer.state[shard] = {"step": torch.tensor(0.0), **moments}


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Adam's step counter, on which its bias correction depends."""
    for state in optimizer.state.values():
        state["step"] = torch.full_like(torch.as_tensor(state["step"], dtype=torch.float32), float(step))


def _is_sharded(parameter: torch.nn.Parameter) -> bool:
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")


def _master(parameter: torch.nn.Parameter) -> torch.Tensor:
    return safe_get_full_fp32_param(parameter) if _is_sharded(parameter) else parameter


def _moment(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, key: str) -> torch.Tensor:
    if _is_sharded(parameter):
        moment: torch.Tensor = safe_get_full_optimizer_state(parameter, key)
    else:
        moment = optimizer.state[parameter][key]
    return moment


def _set_moment(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, key: str, value: torch.Tensor) -> None:
    if _is_sharded(parameter):
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
    else:
        optimizer.state[parameter][key].copy_(value)
