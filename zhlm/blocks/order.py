"""Which block comes when: a pure function of the seed and a global index, for any number of workers, in any process.

The whole data state of a run is therefore one integer, the blocks consumed so far. Streams are interleaved by weight, with no randomness,
so that of n streams each stays within (n - 1) / 2 blocks of its share; inside a stream each pass visits every block once, shards permuted,
rows shuffled inside a window of shards so that a reader touches few files at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

WINDOW_SHARDS = 8
_ONE = 1 << 32  # shares are whole numbers of 2**-32, so that no rounding differs between machines


@dataclass(frozen=True)
class StreamBlocks:
    """A stream as the order sees it."""

    name: str
    weight: float
    shard_blocks: tuple[int, ...]
    """Blocks in each shard, in ledger order."""


@dataclass(frozen=True)
class Address:
    """Where a block is: stream and shard by their positions in the order's input, row inside the shard."""

    stream: int
    epoch: int
    shard: int
    row: int


class Order:
    """The endless sequence of blocks of a run."""

    def __init__(self, streams: Sequence[StreamBlocks], seed: int) -> None:
        empty = [s.name for s in streams if sum(s.shard_blocks) == 0]
        assert streams and not empty, f"streams without a block cannot be ordered: {empty}"
        self._seed = seed
        self._streams = tuple(streams)
        weights = [s.weight for s in streams]
        # Stream s takes this share of what the streams before it left over.
        self._shares = [round(_ONE * w / sum(weights[i:])) for i, w in enumerate(weights)]
        self._window_rows = lru_cache(maxsize=4 * len(streams))(self._shuffle_window)
        self._windows = lru_cache(maxsize=2 * len(streams))(self._cut_windows)

    def __getitem__(self, index: int) -> Address:
        stream, draw = self.draw(index)
        epoch, position = divmod(draw, sum(self._streams[stream].shard_blocks))
        _, starts = self._windows(stream, epoch)
        window = int(np.searchsorted(starts, position, side="right")) - 1
        shard_of, row_of = self._window_rows(stream, epoch, window)
        place = position - int(starts[window])
        return Address(stream, epoch, int(shard_of[place]), int(row_of[place]))

    def draw(self, index: int) -> tuple[int, int]:
        """Stream of a global index, and how many blocks of that stream come before it.

        Worked example: shares 3/4 and 1/4 give the streams 0 0 1 0, 0 0 1 0, ...
        """
        for stream, share in enumerate(self._shares[:-1]):
            before, after = (index * share + _ONE // 2) // _ONE, ((index + 1) * share + _ONE // 2) // _ONE
            if after > before:
                return stream, before
            index -= before
        return len(self._streams) - 1, index

    def _cut_windows(self, stream: int, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The pass's shard permutation, and the first position of each window of shards."""
        sizes = np.array(self._streams[stream].shard_blocks)
        shards = _permutation(len(sizes), self._seed, stream, epoch)
        ends = np.cumsum(sizes[shards])
        starts = np.concatenate([[0], ends[WINDOW_SHARDS - 1 : -1 : WINDOW_SHARDS]])
        return shards, starts.astype(np.int64)

    def _shuffle_window(self, stream: int, epoch: int, window: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        shards, _ = self._windows(stream, epoch)
        chosen = shards[window * WINDOW_SHARDS : (window + 1) * WINDOW_SHARDS]
        sizes = [self._streams[stream].shard_blocks[s] for s in chosen]
        shard_of = np.repeat(chosen, sizes)
        row_of = np.concatenate([np.arange(n) for n in sizes])
        shuffled = _permutation(len(shard_of), self._seed, stream, epoch, window)
        return shard_of[shuffled], row_of[shuffled]


def _permutation(size: int, *key: int) -> npt.NDArray[np.int64]:
    """A permutation that no library version can change: positions sorted by a hash of (key, position).

    Source: the splitmix64 finaliser (Steele, Lea, Flood 2014), folded over the key.
    """
    state = np.zeros(size, np.uint64)
    for part in key:
        state = _mix(state ^ np.uint64(part % (1 << 64)))
    return np.argsort(_mix(state ^ np.arange(size, dtype=np.uint64)), kind="stable")


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
