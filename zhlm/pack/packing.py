"""Documents of any length -> blocks of one length, losing no token.

Shape letters: I ids of all documents, one after another; N documents; P pieces of documents; B blocks; T block tokens.

    block_tokens 4, documents aa bbb cc ddddd (one letter per token)
    best_fit    aacc bbbd dddd      a document that fits a block is never cut
    concat      aabb bccd dddd      the tape is cut every 4 tokens
"""

from bisect import bisect_left, insort
from typing import Any

import numpy as np
import numpy.typing as npt

from zhlm.records import Blocks

OPEN_BLOCKS = 256
"""Blocks that best_fit keeps open; more fill a little better and take longer to search."""

Ints = npt.NDArray[np.int64]


def best_fit(ids_I: npt.NDArray[Any], lengths_N: npt.NDArray[Any], block_tokens: int, open_blocks: int = OPEN_BLOCKS) -> Blocks:
    """Put each document into the open block where it leaves the least room; one longer than a block fills whole blocks first.

    One pass in document order, so the result depends on the documents alone. Blocks are in the order of their first token.
    """
    pieces_P = _cut(lengths_N, block_tokens)
    block_P, start_P = np.empty_like(pieces_P), np.zeros_like(pieces_P)
    room: list[tuple[int, int]] = []  # (tokens left, block), ascending
    num_blocks = 0
    for p, length in enumerate(pieces_P.tolist()):
        at = bisect_left(room, (length, -1))
        if at < len(room):
            left, block = room.pop(at)
        else:
            left, block = block_tokens, num_blocks
            num_blocks += 1
            if len(room) >= open_blocks and length < block_tokens:
                room.pop(0)  # the fullest: the least is lost by closing it
        block_P[p], start_P[p] = block, block_tokens - left
        if left > length:
            insort(room, (left - length, block))
    return _assemble(ids_I, pieces_P, block_P, start_P, num_blocks, block_tokens)


def concat(ids_I: npt.NDArray[Any], lengths_N: npt.NDArray[Any], block_tokens: int) -> Blocks:
    """Cut the documents' tape every block_tokens tokens; the last block is the remainder."""
    ends = np.cumsum(lengths_N, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(ends, np.arange(block_tokens, total, block_tokens, dtype=np.int64))
    cuts = cuts[cuts > 0]
    starts_P = np.concatenate([np.zeros(min(1, len(cuts)), np.int64), cuts[:-1]])
    return _assemble(ids_I, cuts - starts_P, starts_P // block_tokens, starts_P % block_tokens, -(-total // block_tokens), block_tokens)


def _cut(lengths_N: npt.NDArray[Any], block_tokens: int) -> Ints:
    """Lengths of the pieces in order: whole blocks, then the tail. A document without tokens has none."""
    lengths = np.asarray(lengths_N, np.int64)
    num_pieces = -(-lengths // block_tokens)
    pieces = np.full(int(num_pieces.sum()), block_tokens, np.int64)
    there = num_pieces > 0
    last = np.cumsum(num_pieces)[there] - 1
    pieces[last] = lengths[there] - (num_pieces[there] - 1) * block_tokens
    return pieces


def _assemble(ids_I: npt.NDArray[Any], pieces_P: Ints, block_P: Ints, start_P: Ints, num_blocks: int, block_tokens: int) -> Blocks:
    """Copy every piece to its place. Pieces are in the order of the ids and cover them, so one scatter moves all."""
    target_P = block_P * block_tokens + start_P
    source_P = np.cumsum(pieces_P) - pieces_P
    ids = np.zeros(num_blocks * block_tokens, ids_I.dtype)
    ids[np.arange(len(ids_I)) + np.repeat(target_P - source_P, pieces_P)] = ids_I
    by_block = np.argsort(block_P, kind="stable")  # pieces reach a block from left to right, so ends stay ascending
    ends = (start_P + pieces_P)[by_block].astype(np.uint32)
    borders = np.searchsorted(block_P[by_block], np.arange(1, num_blocks))
    return Blocks(ids.reshape(num_blocks, block_tokens), np.split(ends, borders) if num_blocks else [])
