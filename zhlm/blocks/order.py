"""Which block comes when: a pure function of the seed and a global index, for any number of workers, in any process.

The whole data state of a run is therefore one integer, the blocks consumed so far. Streams are interleaved by weight, with no randomness,
so that of n streams each stays within (n - 1) / 2 blocks of its share; inside a stream each pass visits every block once, shards permuted,
rows shuffled inside a window of shards so that a reader touches few files at a time.

While the corpus is still being packed, the sizes of some shards are unknown. The first pass then goes as far as its windows are known; what
an index gives never depends on how much was known when it was asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

WINDOW_SHARDS = 8
"""Of a full window; a pass begins with windows of 1, 2 and 4 shards, so that training need not wait for 8 to be packed."""
_ONE = 1 << 32  # shares are whole numbers of 2**-32, so that no rounding differs between machines

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StreamBlocks:
    """A stream as the order sees it."""

    name: str
    weight: float
    shard_blocks: tuple[int | None, ...]
    """Blocks in each shard, in the order of the plan; None where it is not packed yet."""


@dataclass(frozen=True)
class Address:
    """Where a block is: stream and shard by their positions in the order's input, row inside the shard."""

    stream: int
    epoch: int
    shard: int
    row: int


class NotPacked(Exception):  # noqa: N818 - not a failure: the reader waits and asks again
    """An index needs shards that are not packed yet: those that its stream's next window still lacks."""

    def __init__(self, stream: str, shards: tuple[int, ...], window_shards: int) -> None:
        super().__init__(f"stream {stream} has {window_shards - len(shards)} of the {window_shards} shards of its next window")
        self.stream, self.shards = stream, shards


class Order:
    """The endless sequence of blocks of a run."""

    def __init__(self, streams: Sequence[StreamBlocks], seed: int) -> None:
        empty = [s.name for s in streams if not any(blocks is None or blocks > 0 for blocks in s.shard_blocks)]
        assert streams and not empty, f"streams without a block cannot be ordered: {empty}"
        self._seed = seed
        self._streams = tuple(streams)
        weights = [s.weight for s in streams]
        # Stream s takes this share of what the streams before it left over.
        self._shares = [round(_ONE * w / sum(weights[i:])) for i, w in enumerate(weights)]
        self._known = [_known(s.shard_blocks) for s in streams]
        self._window_rows = lru_cache(maxsize=4 * len(streams))(self._shuffle_window)
        self._windows = lru_cache(maxsize=2 * len(streams))(self._cut_windows)

    def __getitem__(self, index: int) -> Address:
        """Raises: NotPacked when the index needs shards of unknown size."""
        stream, draw = self.draw(index)
        total = self._known[stream]
        epoch, position = (0, draw) if total is None else divmod(draw, total)
        shards, ends = self._windows(stream, epoch)
        window = int(np.searchsorted(ends, position, side="right"))
        if window == len(ends):
            chosen = _window(shards, window)
            raise NotPacked(
                self._streams[stream].name,
                tuple(int(s) for s in chosen if self._streams[stream].shard_blocks[s] is None),
                len(chosen),
            )
        shard_of, row_of = self._window_rows(stream, epoch, window)
        place = position - (int(ends[window - 1]) if window else 0)
        return Address(stream, epoch, int(shard_of[place]), int(row_of[place]))

    def draw(self, index: int) -> tuple[int, int]:
        """Stream of a global index, and how many blocks of that stream come before it.

        Worked example: shares 3/4 and 1/4 give the streams 0 0 1 0, 0 0 1 0, ...
        """
        for stream, share in enumerate(self._shares[:-1]):
            before, after = _taken(index, share), _taken(index + 1, share)
            if after > before:
                return stream, before
            index -= before
        return len(self._streams) - 1, index

    def shares_in(self, start: int, count: int) -> dict[str, float]:
        """Each stream's share of the `count` blocks from index `start` on; needs no shard."""
        drawn = zip(self._streams, self._drawn_before(start), self._drawn_before(start + count), strict=True)
        return {stream.name: (after - before) / count for stream, before, after in drawn}

    def first_shards(self, stream: int) -> list[int]:
        """A stream's shards as the first pass takes them."""
        return [int(s) for s in _permutation(len(self._streams[stream].shard_blocks), self._seed, stream, 0)]

    def _drawn_before(self, index: int) -> list[int]:
        drawn = []
        for share in self._shares[:-1]:
            drawn.append(_taken(index, share))
            index -= drawn[-1]
        return [*drawn, index]

    def _cut_windows(self, stream: int, epoch: int) -> tuple[Ints, Ints]:
        """The pass's shard permutation, and where each window of shards ends, up to the first one that is not known."""
        sizes = self._streams[stream].shard_blocks
        shards = _permutation(len(sizes), self._seed, stream, epoch)
        totals = [_known([sizes[s] for s in shards[start:stop]]) for start, stop in pairwise(_borders(len(sizes)))]
        known = totals[: totals.index(None)] if None in totals else totals
        return shards, np.cumsum(np.array(known, np.int64))

    def _shuffle_window(self, stream: int, epoch: int, window: int) -> tuple[Ints, Ints]:
        chosen = _window(self._windows(stream, epoch)[0], window)
        sizes = [self._streams[stream].shard_blocks[s] for s in chosen]
        shard_of = np.repeat(chosen, sizes)
        row_of = np.concatenate([np.arange(n) for n in sizes])
        shuffled = _permutation(len(shard_of), self._seed, stream, epoch, window)
        return shard_of[shuffled], row_of[shuffled]


def packing_order(sizes: Sequence[Sequence[float]], weights: Sequence[float], seed: int) -> list[tuple[int, int]]:
    """The (stream, shard) pairs in the order in which the first pass needs them; `sizes` of the shards in any unit, such as source bytes.

    A window is needed whole before the first of its blocks, which comes when its stream was drawn through the windows before it.
    """
    needed = []
    for stream, (shards, weight) in enumerate(zip(sizes, weights, strict=True)):
        permuted = [int(s) for s in _permutation(len(shards), seed, stream, 0)]
        before = list(accumulate((shards[s] for s in permuted), initial=0.0))
        for start, stop in pairwise(_borders(len(shards))):
            needed += [(before[start] / weight, before[place] / weight, stream, place, permuted[place]) for place in range(start, stop)]
    return [(stream, shard) for _, _, stream, _, shard in sorted(needed)]


def _known(sizes: Sequence[int | None]) -> int | None:
    """Their sum; None when one of them is not known."""
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total


@lru_cache(maxsize=64)
def _borders(num_shards: int) -> list[int]:
    """Where windows begin among a pass's shards, and the end: 0, 1, 3, 7, 15, 23, ..."""
    borders, size = [0], 1
    while borders[-1] < num_shards:
        borders.append(min(num_shards, borders[-1] + size))
        size = min(2 * size, WINDOW_SHARDS)
    return borders


def _window(shards: Ints, window: int) -> Ints:
    start, stop = _borders(len(shards))[window : window + 2]
    return shards[start:stop]


def _taken(count: int, share: int) -> int:
    """How many of the first `count` places a share takes."""
    return (count * share + _ONE // 2) // _ONE


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
