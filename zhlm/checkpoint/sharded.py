"""Between DeepSpeed's shards and whole tensors by name.

ZeRO cuts the float32 masters and Adam moments of a parameter into stretches, one for each rank (stages 1 to 3), or every rank has them
whole (stage 0). A save copies a rank's own stretches to host memory, which is all that training waits for; then, behind training, they are
sent to the ranks that write them. No rank ever holds more than its own stretches and the tensors that it writes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import distributed

from zhlm.checkpoint.files import Kind, name_ranges, names_by_owner
from zhlm.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")

Parameters = Mapping[str, torch.nn.Parameter]


@dataclass(frozen=True)
class Stretch:
    """Where a piece of a flattened tensor belongs."""

    name: str
    """Of the parameter."""
    moment: str | None
    """None: its value."""
    start: int
    numel: int


class StateCopy:
    """The training state of a moment in host memory, of which each rank has its own part. Made once, taken again and again.

    Every method but `take` is collective: all ranks call it, in the same order. They meet in a process group of its own, so that it may be
    called in a thread while training meets in another.
    """

    def __init__(self, parameters: Parameters, optimizer: torch.optim.Optimizer, one_file_bytes: int) -> None:
        """`one_file_bytes`: a state of up to so many is written by one rank, a larger one by all."""
        self._parameters, self._optimizer = parameters, optimizer
        self._rank, self._world_size = distributed.get_rank(), distributed.get_world_size()
        # Who has written its part waits here for the slowest one, whose signs of life the saver watches.
        self._group = distributed.new_group(backend="gloo", timeout=timedelta(days=30)) if self._world_size > 1 else None
        sizes = {name: 4 * (1 + len(MOMENTS)) * _shape(p).numel() for name, p in parameters.items()}
        self._ranges = name_ranges(sizes, 1 if sum(sizes.values()) <= one_file_bytes else self._world_size)
        self._owner_of = names_by_owner(self._ranges)
        own = [[s for s in _stretches(parameters, optimizer, self._rank) if self._goes_to(rank, s)] for rank in range(self._world_size)]
        self._stretches: list[list[list[Stretch]]] = self.meet(own)
        """Of rank r for rank w: [r][w]."""
        pinned = torch.cuda.is_available()
        # Written to once, or the first copy would wait for the pages.
        self._buffers = [torch.empty(sum(s.numel for s in to), pin_memory=pinned).zero_() for to in own]

    @property
    def num_files(self) -> int:
        """Of each kind; the n-th is written by rank n."""
        return len(self._ranges)

    def meet(self, own: object) -> list:  # type: ignore[type-arg]
        """What every rank brings, by rank."""
        if self._group is None:
            return [own]
        brought = [None] * self._world_size
        distributed.all_gather_object(brought, own, group=self._group)
        return brought

    def take(self) -> None:
        """Copy this rank's part. Not collective; the copy before must have been assembled."""
        for buffer, stretches in zip(self._buffers, self._stretches[self._rank], strict=True):
            for piece, stretch in zip(_pieces(buffer, stretches), stretches, strict=True):
                held = _held(self._parameters[stretch.name], self._optimizer, stretch.moment, self._rank)
                assert held is not None, f"{stretch} was here when the copy was made"
                piece.copy_(held[1][: stretch.numel], non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def assemble(self) -> dict[Kind, dict[str, torch.Tensor]]:
        """The whole tensors that this rank writes, float32: values by name, moments as `<name>/exp_avg`. A rank may have none to write."""
        whole: dict[tuple[str, str | None], torch.Tensor] = {}
        for source in range(self._world_size):
            for target in range(self._world_size):
                stretches = self._stretches[source][target]
                if stretches and self._rank == target:
                    for piece, stretch in zip(_pieces(self._received(source, stretches), stretches), stretches, strict=True):
                        self._join(whole, stretch, piece)
                elif stretches and self._rank == source:
                    distributed.send(self._buffers[target], target, group=self._group)
        own = self._ranges[self._rank] if self._rank < len(self._ranges) else ()
        values = {name: whole[name, None] for name in own}
        return {"trainable": values, "optimizer": {f"{name}/{moment}": whole[name, moment] for name in own for moment in MOMENTS}}

    def _received(self, source: int, stretches: Sequence[Stretch]) -> torch.Tensor:
        """What a rank has for this one."""
        if source == self._rank:
            return self._buffers[source]
        buffer = torch.empty(sum(s.numel for s in stretches))
        distributed.recv(buffer, source, group=self._group)
        return buffer

    def _join(self, whole: dict[tuple[str, str | None], torch.Tensor], stretch: Stretch, piece: torch.Tensor) -> None:
        shape, key = _shape(self._parameters[stretch.name]), (stretch.name, stretch.moment)
        if stretch.numel == shape.numel():
            whole[key] = piece.view(shape)
            return
        flat = whole.setdefault(key, torch.empty(shape)).view(-1)
        flat[stretch.start : stretch.start + stretch.numel] = piece

    def close(self) -> None:
        if self._group is not None:
            distributed.destroy_process_group(self._group)

    def _goes_to(self, rank: int, stretch: Stretch) -> bool:
        """What every rank has whole is sent by none."""
        is_owner = self._owner_of[stretch.name] == rank
        return is_owner and (rank == self._rank or _is_sharded(self._parameters[stretch.name]))


def scatter(
    parameters: Parameters,
    optimizer: torch.optim.Optimizer,
    values: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
    step: int,
) -> None:
    """Put a checkpoint into the shards, tensor by tensor. The optimizer must have its moments: see `create_moments`.

    The weights that the next forward reads must hold these values already: setting a master refreshes them only after a step.
    Raises: CheckpointError when the names differ.
    """
    if set(values) != set(parameters):
        odd = sorted(set(values) ^ set(parameters))[0]
        raise CheckpointError(
            f"checkpoint: it holds {len(values)} tensors, the model trains {len(parameters)}; {odd} is in only one of them"
        )
    for name, parameter in parameters.items():
        _put(parameter, optimizer, None, values[name])
        for key in MOMENTS:
            _put(parameter, optimizer, key, moments[f"{name}/{key}"])
    set_step(optimizer, step)


def create_moments(optimizer: torch.optim.Optimizer) -> None:
    """Zero moments before the first step. DeepSpeed links parameters to their moments while it steps the first group, so that those of the
    other groups would be missing for good."""
    for group in optimizer.param_groups:
        for shard in group["params"]:
            if not optimizer.state[shard]:
                moments = {key: torch.zeros_like(shard, memory_format=torch.preserve_format) for key in MOMENTS}
                # As torch begins it: the fused kernel counts on the device.
                step = torch.zeros((), device=shard.device if group.get("fused") else "cpu")
                optimizer.state[shard] = {"step": step, **moments}


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Adam's step counter, on which its bias correction depends."""
    for state in optimizer.state.values():
        state["step"] = torch.full_like(torch.as_tensor(state["step"], dtype=torch.float32), float(step))


def _is_sharded(parameter: torch.nn.Parameter) -> bool:
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")


def _shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Of the whole parameter; ZeRO-3 leaves none of it on the parameter itself."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _stretches(parameters: Parameters, optimizer: torch.optim.Optimizer, rank: int) -> Iterator[Stretch]:
    """All that this rank has, in alphabetical order of names."""
    for name in sorted(parameters):
        for moment in (None, *MOMENTS):
            held = _held(parameters[name], optimizer, moment, rank)
            if held is not None:
                start, flat = held
                yield Stretch(name, moment, start, min(len(flat), _shape(parameters[name]).numel() - start))


def _held(
    parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, moment: str | None, rank: int
) -> tuple[int, torch.Tensor] | None:
    """Where this rank's stretch of a tensor starts, and its elements: float32, perhaps with padding behind. None: it has none."""
    if hasattr(parameter, "ds_id"):
        flat = safe_get_local_fp32_param(parameter) if moment is None else safe_get_local_optimizer_state(parameter, moment)
        start = rank * len(flat)
        return (start, flat.detach()) if start < _shape(parameter).numel() else None
    if hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        return None if mapping is None else (mapping.lp_fragment_address.start, mapping.get_hp_fragment(moment).detach().flatten())
    whole = parameter if moment is None else optimizer.state[parameter][moment]
    return 0, whole.detach().flatten()


def _pieces(buffer: torch.Tensor, stretches: Sequence[Stretch]) -> Sequence[torch.Tensor]:
    return torch.split(buffer, [s.numel for s in stretches])


def _put(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, moment: str | None, value: torch.Tensor) -> None:
    """Put this rank's stretch of a whole tensor where `_held` finds it."""
    if hasattr(parameter, "ds_id"):
        held = _held(parameter, optimizer, moment, distributed.get_rank())
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        own = torch.zeros(size, device=parameter.device)
        if held is not None:
            stretch = value.flatten()[held[0] : held[0] + size]
            own[: len(stretch)] = stretch
        if moment is None:
            safe_set_local_fp32_param(parameter, own)
        else:
            safe_set_local_optimizer_state(parameter, own, moment)
    elif hasattr(parameter, "_hp_mapping"):
        if moment is None:
            safe_set_full_fp32_param(parameter, value.to(parameter.device))
        else:
            safe_set_full_optimizer_state(parameter, value.to(parameter.device), moment)
    else:
        target = parameter.data if moment is None else optimizer.state[parameter][moment]
        target.copy_(value)
