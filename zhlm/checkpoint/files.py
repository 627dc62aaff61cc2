"""Tensor files of a checkpoint: written in one pass, read back before they count, and read tensor by tensor.

The names of a state are cut into ranges, in alphabetical order, one for each file:

    trainable.safetensors                                                  one range: a small state
    trainable-00001-of-00002.safetensors  optimizer-00001-of-00002.safe... two: a part of each file is all that a rank ever holds
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from zhlm.errors import CheckpointError

Kind = Literal["trainable", "optimizer"]
CHUNK_BYTES = 16 << 20
SYNC_BYTES = 1 << 30

Beat = Callable[[], None]
"""Called again and again while work goes on, so that who waits for it knows a slow disk from a dead one."""


def file_name(kind: Kind, number: int, of: int) -> str:
    return f"{kind}.safetensors" if of == 1 else f"{kind}-{number + 1:05d}-of-{of:05d}.safetensors"


def kind_of(name: str) -> str:
    """Of a file of a checkpoint."""
    return name.split(".")[0].split("-")[0]


def name_ranges(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in alphabetical order, cut into at most so many ranges of about the same size, none of them empty."""
    ranges: list[list[str]] = [[]]
    done, total = 0, sum(sizes.values())
    for left, name in zip(range(len(sizes), 0, -1), sorted(sizes), strict=True):
        share_is_full = done + sizes[name] / 2 > total * len(ranges) / most
        if ranges[-1] and len(ranges) < most and (share_is_full or left <= most - len(ranges)):
            ranges.append([])
        ranges[-1].append(name)
        done += sizes[name]
    return ranges


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], beat: Beat = lambda: None) -> str:
    """Write float32 tensors as safetensors, onto the disk, and read them back. Returns the sha256 of the file.

    Raises: CheckpointError when a tensor is empty or the file does not read back as written; OSError of the disk.
    """
    empty = [name for name, t in tensors.items() if t.numel() == 0]
    if empty or not tensors:
        raise CheckpointError(
            f"checkpoint: {path.name} would hold {len(tensors)} tensors, empty ones: {empty}; a sharded parameter was not gathered"
        )
    written, waiting = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for piece in _pieces(tensors):
            file.write(piece)
            written.update(piece)
            waiting += len(piece)
            if waiting >= SYNC_BYTES:  # or the end would wait for all of it without a sign of life
                os.fsync(file.fileno())
                waiting = 0
            beat()
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # or reading back would ask the memory instead of the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    checksum = sha256_of(path, beat)
    if checksum != written.hexdigest() or shapes_of(path) != {name: [*t.shape] for name, t in tensors.items()}:
        raise CheckpointError(f"checkpoint: {path} does not read back as written; check the disk", path=str(path))
    return checksum


def file_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """What `write_tensors` takes on the disk."""
    return len(_header(tensors)) + 4 * sum(t.numel() for t in tensors.values())


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Of the safetensors format: a length, then names, types, shapes and places as JSON, filled up to a multiple of 8."""
    entries, at = {}, 0
    for name, tensor in tensors.items():
        end = at + 4 * tensor.numel()
        entries[name] = {"dtype": "F32", "shape": [*tensor.shape], "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    yield memoryview(_header(tensors))
    for tensor in tensors.values():
        flat: Any = tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1).numpy()
        data = memoryview(flat.astype("<f4", copy=False)).cast("B")
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]


def sha256_of(path: Path, beat: Beat = lambda: None) -> str:
    found, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            found.update(buffer[:count])
            beat()
    return found.hexdigest()


def shapes_of(path: Path) -> dict[str, list[int]]:
    """Of the tensors in a file. Raises: CheckpointError when it is none of this format."""
    with _opened(path) as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no dict


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint: {path} is no whole file of tensors: {error}", path=str(path)) from error


class Tensors(Mapping[str, torch.Tensor]):
    """The tensors of several files by name; each is read when it is asked for, and not kept."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._file_of: dict[str, Any] = {}
        for path in paths:
            file = _opened(path)
            self._file_of |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def names_by_owner(ranges: Sequence[Sequence[str]]) -> dict[str, int]:
    """Name -> the rank that writes it: the n-th range is the n-th rank's."""
    return {name: rank for rank, names in enumerate(ranges) for name in names}
