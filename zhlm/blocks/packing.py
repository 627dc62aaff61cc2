"""Documents of ids -> blocks of equal length, a window at a time, so that memory is bounded whatever comes.

Shape letters: N documents, I ids of all documents, P pieces, B blocks, T block tokens. A piece is a document, or a part of a
long one.

    documents aa bbb cc ddddd (one letter per token), T = 4
    best_fit    dddd bbbd aacc      a document that fits a block is never cut
    concat      aabb bccd dddd      the tape is cut every 4 tokens
    none        aa.. bbb. cc.. dddd d...
"""

from bisect import bisect_left, insort
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zhlm.records import Blocks

WINDOW_TOKENS = 1 << 22
"""Packed at a time; more fill a little better and take more memory."""
WINDOW_BLOCKS = 256
"""At least this many blocks in a window, so that long ones are filled as well as short ones."""

Ids = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Kind = Literal["best_fit", "concat", "none"]


class Packer:
    """Takes documents in order and gives blocks. They depend on the documents alone, not on how many came at once."""

    def __init__(self, kind: Kind, block_tokens: int, dtype: npt.DTypeLike, window_tokens: int | None = None) -> None:
        self._kind, self._block_tokens = kind, block_tokens
        self._window_tokens = max(window_tokens or max(WINDOW_TOKENS, WINDOW_BLOCKS * block_tokens), block_tokens)
        self._ids: list[Ids] = []
        self._lengths: list[Ints] = []
        self._tokens = 0
        self._held: Ids = np.empty(0, dtype)
        """End of an unfinished document, short of a whole block."""
        self._tape = 0
        """Tokens since the last block border, for concat."""

    def add(self, ids_I: Ids, lengths_N: npt.NDArray[Any], *, unfinished: bool = False) -> list[Blocks]:
        """The windows that became full. `unfinished`: the last document goes on with the first one of the next call."""
        if not len(lengths_N):
            return []
        ids, lengths = np.concatenate([self._held, ids_I.astype(self._held.dtype, copy=False)]), np.array(lengths_N, np.int64)
        lengths[0] += len(self._held)
        # What is held back makes the part that is taken end at a border of its blocks, where the whole document is cut too.
        before = self._tape + int(lengths[:-1].sum()) if self._kind == "concat" else 0
        held = min(int(lengths[-1]), (before + int(lengths[-1])) % self._block_tokens) if unfinished else 0
        lengths[-1] -= held
        self._held = ids[len(ids) - held :]
        self._ids.append(ids[: len(ids) - held])
        self._lengths.append(lengths[lengths > 0] if self._kind == "concat" else _cut(lengths, self._block_tokens))
        self._tokens += len(ids) - held
        self._tape = (self._tape + len(ids) - held) % self._block_tokens
        full = []
        while self._tokens >= self._window_tokens:
            full.append(self._pack(last=False))
        return full

    def finish(self) -> Blocks:
        """What is left."""
        assert not len(self._held), "the last document is unfinished"
        return self._pack(last=True)

    def _pack(self, last: bool) -> Blocks:
        """The first window of what is there, or all of it."""
        ids = np.concatenate([np.empty(0, self._held.dtype), *self._ids])
        lengths = np.concatenate([np.empty(0, np.int64), *self._lengths])
        ends = np.cumsum(lengths)
        tokens = len(ids)
        if not last and self._kind == "concat":  # the tape is cut at a border of blocks, best_fit's pieces after one of them
            tokens = self._window_tokens // self._block_tokens * self._block_tokens
        elif not last:
            tokens = int(ends[np.searchsorted(ends, self._window_tokens)])
        count = int(np.searchsorted(ends, tokens)) + 1
        over = int(ends[count - 1]) - tokens if len(ends) else 0
        window, rest = lengths[:count].copy(), lengths[count:]
        if over:
            window[-1] -= over
            rest = np.concatenate([[over], rest])
        self._ids, self._lengths, self._tokens = [ids[tokens:].copy()], [rest], len(ids) - tokens
        return {"best_fit": best_fit, "concat": concat, "none": alone}[self._kind](ids[:tokens], window, self._block_tokens)


def best_fit(ids_I: Ids, lengths_N: npt.NDArray[Any], block_tokens: int) -> Blocks:
    """The longest pieces first, each into the block where it leaves the least room; a document longer than a block fills whole ones first.

    Source: best-fit-decreasing bin packing, as in Ding et al. 2024 (arXiv 2404.10830); equal lengths are placed together, so the work grows
    with the number of distinct lengths and not with the number of documents.
    """
    pieces_P = _cut(lengths_N, block_tokens)
    block_P, start_P = np.empty_like(pieces_P), np.zeros_like(pieces_P)
    rooms: dict[int, Ints] = {}  # tokens left -> blocks with so much room, in the order in which they got it
    sizes: list[int] = []  # the keys of rooms, ascending
    num_blocks = 0
    by_length = np.argsort(-pieces_P, kind="stable")
    lengths, firsts = np.unique(-pieces_P[by_length], return_index=True)
    counting_P = np.arange(len(pieces_P))
    for length, group in zip((-lengths).tolist(), _split(by_length, firsts[1:]), strict=True):
        while len(group):
            at = bisect_left(sizes, length)
            room = sizes[at] if at < len(sizes) else block_tokens
            each = room // length  # the tightest block stays the tightest while it can take one more
            wanted = -(-len(group) // each)
            if at < len(sizes):
                blocks = _take(rooms, sizes, room, wanted)
            else:
                blocks = counting_P[num_blocks : num_blocks + wanted]
                num_blocks += wanted
            placed, group = group[: len(blocks) * each], group[len(blocks) * each :]
            nth, place = np.divmod(counting_P[: len(placed)], each)
            block_P[placed] = blocks[nth]
            start_P[placed] = block_tokens - room + place * length
            in_last = len(placed) - (len(blocks) - 1) * each
            _put(rooms, sizes, room - each * length, blocks[:-1])
            _put(rooms, sizes, room - in_last * length, blocks[-1:])
    return _assemble(ids_I, pieces_P, block_P, start_P, num_blocks, block_tokens)


def _split(values: npt.NDArray[Any], borders: Ints) -> list[npt.NDArray[Any]]:
    """np.split, which takes several times as long for many parts."""
    return [values[start:stop] for start, stop in pairwise([0, *borders.tolist(), len(values)])] if len(values) else []


def _take(rooms: dict[int, Ints], sizes: list[int], room: int, wanted: int) -> Ints:
    blocks = rooms.pop(room)
    if wanted < len(blocks):
        rooms[room] = blocks[wanted:]
    else:
        sizes.remove(room)
    return blocks[:wanted]


def _put(rooms: dict[int, Ints], sizes: list[int], room: int, blocks: Ints) -> None:
    if not room or not len(blocks):
        return
    if room in rooms:
        rooms[room] = np.concatenate([rooms[room], blocks])
    else:
        rooms[room] = blocks
        insort(sizes, room)


def concat(ids_I: Ids, lengths_N: npt.NDArray[Any], block_tokens: int) -> Blocks:
    """Cut the documents' tape every block_tokens tokens; the last block is the remainder."""
    ends = np.cumsum(lengths_N, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(ends, np.arange(block_tokens, total, block_tokens, dtype=np.int64))
    cuts = cuts[cuts > 0]
    starts_P = np.concatenate([np.zeros(min(1, len(cuts)), np.int64), cuts[:-1]])
    return _assemble(ids_I, cuts - starts_P, starts_P // block_tokens, starts_P % block_tokens, -(-total // block_tokens), block_tokens)


def alone(ids_I: Ids, lengths_N: npt.NDArray[Any], block_tokens: int) -> Blocks:
    """Each document in a block of its own, a longer one in several."""
    pieces_P = _cut(lengths_N, block_tokens)
    return _assemble(ids_I, pieces_P, np.arange(len(pieces_P)), np.zeros_like(pieces_P), len(pieces_P), block_tokens)


def _cut(lengths_N: npt.NDArray[Any], block_tokens: int) -> Ints:
    """Lengths of the pieces in order: whole blocks, then the tail. A document without tokens has none."""
    lengths = np.asarray(lengths_N, np.int64)
    num_pieces = -(-lengths // block_tokens)
    pieces = np.full(int(num_pieces.sum()), block_tokens, np.int64)
    there = num_pieces > 0
    last = np.cumsum(num_pieces)[there] - 1
    pieces[last] = lengths[there] - (num_pieces[there] - 1) * block_tokens
    return pieces


def _assemble(ids_I: Ids, pieces_P: Ints, block_P: Ints, start_P: Ints, num_blocks: int, block_tokens: int) -> Blocks:
    """Copy every piece to its place. Pieces are in the order of the ids and cover them.

    To Arrow, pieces and paddings are strings of bytes on one tape: taking them in the order of the blocks copies each of them whole, where
    numpy would move token by token.
    """
    if not num_blocks:
        return Blocks(np.zeros((0, block_tokens), ids_I.dtype), [])
    in_order = np.argsort(block_P * block_tokens + start_P)
    ends = (start_P + pieces_P)[in_order]
    last_B = np.searchsorted(block_P[in_order], np.arange(1, num_blocks + 1))  # one behind each block's last piece
    padding_B = block_tokens - ends[last_B - 1]
    lengths = np.concatenate([[0], pieces_P, padding_B])
    tape = np.concatenate([ids_I, np.zeros(padding_B.sum(), ids_I.dtype)])
    offsets = pa.py_buffer(np.cumsum(lengths) * tape.itemsize)
    strings = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths) - 1, [None, offsets, pa.py_buffer(tape)])
    order = np.insert(in_order, last_B, len(pieces_P) + np.arange(num_blocks))
    taken = strings.take(pa.array(order)).buffers()[2]
    ids_BT = np.frombuffer(taken, tape.dtype, num_blocks * block_tokens).reshape(num_blocks, block_tokens)
    return Blocks(ids_BT, _split(ends.astype(np.uint32), last_B[:-1]))
