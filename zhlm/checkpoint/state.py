"""A checkpoint on disk: tensors by parameter name, never by shard, so that any number of workers can take it up.

    checkpoints/step_00000200/trainable.safetensors   trained parameters, float32
                              optimizer.safetensors   Adam moments, `<parameter>/exp_avg` and `<parameter>/exp_avg_sq`, float32
                              progress.json           where the run is, with the checksum of both files

A checkpoint is verified by reading it back before it gets its name; one that lacks progress.json or fails its checksum never counts.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zhlm.errors import CheckpointError
from zhlm.storage import Place, storage_errors

TRAINABLE, OPTIMIZER, PROGRESS = "trainable.safetensors", "optimizer.safetensors", "progress.json"


@dataclass(frozen=True)
class TrainState:
    """Everything beside tensors that survives a restart."""

    step: int = 0
    """Optimizer steps done."""
    consumed_blocks: int = 0
    """Blocks trained on: the whole state of the data order."""
    tokens: int = 0
    """Tokens of those blocks, padding not counted."""
    seconds: float = 0.0
    """Time spent in training steps, earlier attempts included."""


def save(checkpoints: Place, state: TrainState, trainable: Mapping[str, torch.Tensor], optimizer: Mapping[str, torch.Tensor]) -> Place:
    """Write one checkpoint, whole or not at all. Raises: CheckpointError, StorageError."""
    place = checkpoints / f"step_{state.step:08d}"
    with place.staged() as folder, storage_errors("writing", place):
        checksums = {name: _write(folder / name, tensors) for name, tensors in ((TRAINABLE, trainable), (OPTIMIZER, optimizer))}
        progress = {"state": asdict(state), "sha256": checksums}
        (folder / PROGRESS).write_text(json.dumps(progress, indent=1), encoding="utf-8")
    return place


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    empty = [name for name, t in tensors.items() if t.numel() == 0]
    if empty or not tensors:
        raise CheckpointError(
            f"checkpoint: {path.name} would hold {len(tensors)} tensors, empty ones: {empty}; a sharded parameter was not gathered"
        )
    try:
        save_file({name: t.detach().to("cpu", torch.float32).contiguous() for name, t in tensors.items()}, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))  # a full disk is told in the text only
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    read_back = load_file(path)
    wrong = [name for name, t in tensors.items() if name not in read_back or read_back[name].shape != t.shape]
    if wrong:
        raise CheckpointError(f"checkpoint: {path} does not read back as written: {wrong[0]}", path=str(path))
    return _sha256(path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, on this machine."""

    folder: Path
    state: TrainState

    def trainable(self) -> dict[str, torch.Tensor]:
        return dict(load_file(self.folder / TRAINABLE))

    def optimizer(self) -> dict[str, torch.Tensor]:
        return dict(load_file(self.folder / OPTIMIZER))


def newest(checkpoints: Place) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a line for each newer one that was passed over."""
    passed_over: list[str] = []
    for name in reversed(_names(checkpoints)):
        folder = (checkpoints / name).on_disk()
        state, problem = _verify(folder)
        if state is not None:
            return Checkpoint(folder, state), passed_over
        passed_over.append(f"{name} passed over: {problem}")
    return None, passed_over


def _names(checkpoints: Place) -> list[str]:
    return [n for n in checkpoints.names() if n.startswith("step_")]


def _verify(folder: Path) -> tuple[TrainState | None, str]:
    """The state of a whole checkpoint, or None and what is wrong with it."""
    try:
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        state, checksums = TrainState(**progress["state"]), progress["sha256"]
    except FileNotFoundError:
        return None, f"no {PROGRESS}"
    except (ValueError, TypeError, KeyError):
        return None, f"{PROGRESS} is damaged"
    wrong = [name for name in (TRAINABLE, OPTIMIZER) if not (folder / name).is_file() or _sha256(folder / name) != checksums.get(name)]
    return (None, f"{wrong[0]} is missing or damaged") if wrong else (state, "")


def prune(checkpoints: Place, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for name in _names(checkpoints)[:-keep]:
        (checkpoints / name).delete()
