"""A checkpoint on disk: tensors by parameter name, never by shard, so that any number of workers can take it up.

    checkpoints/step_00000200/trainable.safetensors   trained parameters, float32
                              optimizer.safetensors   Adam moments, `<parameter>/exp_avg` and `<parameter>/exp_avg_sq`, float32
                              progress.json           where the run is, with the checksum of every file

A large state is cut into files by ranges of names (see files.py). A checkpoint is verified by reading it back before it gets its name; one
that lacks progress.json or fails a checksum never counts.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from zhlm.checkpoint.files import Beat, Kind, Tensors, file_name, kind_of, sha256_of
from zhlm.checkpoint.writing import PROGRESS, Writing
from zhlm.config.stages import differences
from zhlm.errors import CheckpointError, RunError
from zhlm.storage import Place

FORMAT = 2
"""Of progress.json and the files that it names. 1: before it had a number; one file of each kind."""
TRAINABLE, OPTIMIZER = file_name("trainable", 0, 1), file_name("optimizer", 0, 1)

_NAME = re.compile(r"step_\d{8,}")
"""Other names in the folder are a user's, such as a copy of the best."""

Scores = Mapping[str, Mapping[str, float]]
"""Stream -> what validation measured, such as bits_per_byte."""


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


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says beside its tensors and its state."""

    validation: Scores = field(default_factory=dict)
    """Measured at its own step; empty where none was."""
    made_for: Mapping[str, Any] = field(default_factory=dict)
    """What must be the same where it is taken up: base, tokenizer, block size, objective. Empty in format 1."""


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def progress_of(state: TrainState, facts: Facts, checksums: Mapping[str, str]) -> dict[str, Any]:
    """The content of progress.json. `checksums`: file name -> sha256, of all files."""
    return {"format": FORMAT, "state": asdict(state), **asdict(facts), "sha256": dict(sorted(checksums.items()))}


def save(
    checkpoints: Place,
    state: TrainState,
    trainable: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    facts: Facts | None = None,
) -> Place:
    """Write one checkpoint at once, whole or not at all. Raises: CheckpointError, StorageError."""
    writing = Writing(checkpoints, folder_name(state.step), tells=lambda _: None, beat=lambda: None)
    try:
        writing.prepare()
        checksums = {name: writing.put(name, tensors) for name, tensors in ((TRAINABLE, trainable), (OPTIMIZER, optimizer))}
        writing.commit(progress_of(state, facts or Facts(), checksums))
    finally:
        writing.discard()
    return writing.place


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, on this machine."""

    folder: Path
    state: TrainState
    facts: Facts = field(default_factory=Facts)
    files: tuple[str, ...] = (TRAINABLE, OPTIMIZER)

    def trainable(self) -> Mapping[str, torch.Tensor]:
        """Each tensor is read when it is asked for."""
        return self._tensors("trainable")

    def optimizer(self) -> Mapping[str, torch.Tensor]:
        """As `trainable`."""
        return self._tensors("optimizer")

    def _tensors(self, kind: Kind) -> Tensors:
        return Tensors(self.folder / name for name in self.files if kind_of(name) == kind)

    def check_fits(self, made_for: Mapping[str, Any]) -> None:
        """Raises: RunError where it was trained for something else than what is trained now."""
        known = {name: self.facts.made_for[name] for name in made_for if name in self.facts.made_for}
        if "base" in known and "revision" in made_for.keys() - known.keys():  # a hub model, from before its commit was noted
            known["base"] = known["base"].partition("@")[0]
        changed = differences(known, {name: made_for[name] for name in known})
        if changed:
            raise RunError(
                f"train: the checkpoint {self.folder} was made for something else ({'; '.join(changed)}); restore the setting, "
                "or choose another name for this run"
            )


def newest(checkpoints: Place, beat: Beat = lambda: None) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a line for each newer one that was passed over. `beat` is called while it is fetched and read.

    Raises: RunError when a newer version of zhlm wrote it.
    """
    passed_over: list[str] = []
    for name in reversed(_names(checkpoints)):
        found = _verified((checkpoints / name).on_disk(beat), beat)
        if isinstance(found, Checkpoint):
            return found, passed_over
        passed_over.append(f"{name} passed over: {found}")
    return None, passed_over


def copy_here(checkpoint: Checkpoint, checkpoints: Place, beat: Beat = lambda: None) -> Checkpoint:
    """What another machine verified, on this one. Raises: CheckpointError when the copy of a remote one is damaged."""
    folder = (checkpoints / checkpoint.folder.name).on_disk(beat)
    found = _verified(folder, beat) if checkpoints.remote else replace(checkpoint, folder=folder)
    if isinstance(found, str):
        raise CheckpointError(f"checkpoint: the copy {folder} is not what was verified elsewhere: {found}; remove it", path=str(folder))
    return found


def _names(checkpoints: Place) -> list[str]:
    return [n for n in checkpoints.names() if _NAME.fullmatch(n)]


def _verified(folder: Path, beat: Beat = lambda: None) -> Checkpoint | str:
    """A whole checkpoint, or what is wrong with it."""
    try:
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        _check_format(folder, progress.get("format", 1))
        state, checksums = TrainState(**progress["state"]), dict(progress["sha256"])
        facts = Facts(progress.get("validation", {}), progress.get("made_for", {}))
    except FileNotFoundError:
        return f"no {PROGRESS}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{PROGRESS} is damaged"
    if "format" not in progress and set(checksums) != {TRAINABLE, OPTIMIZER}:
        return f"{PROGRESS} is damaged"
    wrong = [name for name, sha256 in checksums.items() if not (folder / name).is_file() or sha256_of(folder / name, beat) != sha256]
    return f"{wrong[0]} is missing or damaged" if wrong else Checkpoint(folder, state, facts, tuple(checksums))


def _check_format(folder: Path, number: Any) -> None:
    if isinstance(number, int) and number > FORMAT:
        raise RunError(
            f"train: the checkpoint {folder} has format {number}, this version of zhlm reads 1 to {FORMAT}; install the version that wrote "
            "it, or move it away to go on from an older one"
        )


def prune(
    checkpoints: Place,
    keep: int,
    keep_best: int = 0,
    streams: Collection[str] = (),
    last_step: int | None = None,
    keep_step: int | None = None,
) -> None:
    """Delete all but the newest `keep` checkpoints, the one of `keep_step`, and the `keep_best` best ones: those with the fewest bits per
    byte at their own step, as the mean over `streams`. Of equal ones the later is better. What is newer than `last_step` was passed over
    when training resumed."""
    names = [name for name in _names(checkpoints) if last_step is None or int(name.removeprefix("step_")) <= last_step]
    kept = {*names[-keep:], *(name for name in names if int(name.removeprefix("step_")) == keep_step)}
    if keep_best and streams:
        bits = {name: _mean_bits_per_byte(checkpoints / name, streams) for name in reversed(names)}
        kept |= set(sorted((name for name, b in bits.items() if math.isfinite(b)), key=bits.__getitem__)[:keep_best])
    for name in _names(checkpoints):
        if name not in kept:
            (checkpoints / name).delete()


def _mean_bits_per_byte(place: Place, streams: Collection[str]) -> float:
    """NaN where it was not measured, or the checkpoint is damaged."""
    progress = place / PROGRESS
    try:
        validation: Scores = json.loads(progress.read_text()).get("validation", {}) if progress.exists() else {}
        return sum(validation.get(name, {}).get("bits_per_byte", math.nan) for name in streams) / len(streams)
    except (ValueError, TypeError, AttributeError):
        return math.nan
