"""Out of memory, told as one line: in which part of the work, how much more was asked for, what to lower."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from zhlm.config.remedies import memory_remedies
from zhlm.config.schema import RunConfig
from zhlm.errors import TrainError

_WORDS = re.compile(r"out of memory|can't allocate memory|not enough memory|Unable to allocate|ALLOC_FAILED", re.IGNORECASE)
"""How torch's allocators for GPU and CPU, cuBLAS and NumPy say it."""
_ASKED = re.compile(r"(?:allocate|you tried to allocate) ([\d.]+) ?(bytes|[KMGTP]iB)")
_UNITS = {"bytes": 1, **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", 1)}}


class Shortage(Exception):  # noqa: N818 - becomes a TrainError where the config is known
    """Memory ended in a part of the work."""

    def told(self, config: RunConfig, workers: int) -> TrainError:
        return TrainError(f"train: out of memory in {self}, expected to fit; {memory_remedies(config, workers)}")


@contextmanager
def memory_for(part: str) -> Iterator[None]:
    """Also a decorator. Raises: Shortage in place of an error that means that there is no more memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or _WORDS.search(str(error))):
            raise
        asked = asked_bytes(str(error))
        raise Shortage(part if asked is None else f"{part}, where {asked / 2**30:.2f} GiB more were asked for") from error


def asked_bytes(message: str) -> float | None:
    """How much an allocator was asked for, by its message; None where it does not say."""
    found = _ASKED.search(message)
    return float(found[1]) * _UNITS[found[2]] if found else None
