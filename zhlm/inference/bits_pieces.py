"""Held-out documents as rows that an objective makes its batches from, each on its own, and how much text every token stands for.

Shape letters: T tokens of a piece.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from zhlm.inference.bits import count_unknown, groups_of, special_ids
from zhlm.objectives.batch import Batch, BatchMaker, Ints
from zhlm.records import Blocks

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Piece:
    """A document, or as much of a longer one as a block holds."""

    ids_T: Ints
    bytes_T: Shares
    """Bytes of the text that a token stands for; 0 for bos and eos."""
    characters_T: Shares

    def part(self, start: int, end: int) -> Self:
        return type(self)(self.ids_T[start:end], self.bytes_T[start:end], self.characters_T[start:end])


@dataclass(frozen=True)
class Reading:
    """The documents of a stream as a tokenizer reads them, bos in front and eos behind as the pack config says."""

    documents: list[Piece]
    unknown_tokens: int

    @property
    def utf8_bytes(self) -> float:
        return float(sum(d.bytes_T.sum() for d in self.documents))

    @property
    def characters(self) -> float:
        return float(sum(d.characters_T.sum() for d in self.documents))

    def pieces(self, block_tokens: int) -> list[Piece]:
        """Documents that are longer than a block are cut, as packing cuts them."""
        return [d.part(at, at + block_tokens) for d in self.documents for at in range(0, len(d.ids_T), block_tokens)]


def read(tokenizer: Any, texts: Sequence[str], *, document_start: str, document_end: str) -> Reading:
    """Raises: BaseModelError when the tokenizer lacks the bos or eos asked for."""
    starts, ends = special_ids(tokenizer, document_start), special_ids(tokenizer, document_end)
    before, behind = np.zeros(len(starts)), np.zeros(len(ends))
    documents, unknown_tokens = [], 0
    for text in texts:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = list(encoding["input_ids"])
        unknown_tokens += count_unknown(tokenizer, ids, [*starts, *ends])
        sizes = (np.concatenate([before, s, behind]) for s in shares(text, encoding["offset_mapping"]))
        documents.append(Piece(np.array([*starts, *ids, *ends], np.int64), *sizes))
    return Reading(documents, unknown_tokens)


def shares(text: str, offsets: Sequence[tuple[int, int]]) -> tuple[Shares, Shares]:
    """Bytes and characters of each token, which sum to those of the text.

    Tokens that share a character share its bytes evenly: (0, 1), (0, 1), (0, 1), (1, 3) in four Chinese ones gives 1, 1, 1 and 9 bytes.
    What stands between two tokens, a space that the tokenizer drops, counts to the second, and what follows the last one to the last.
    """
    firsts, places, reach = [], [], 0
    for token, (start, end) in enumerate(offsets):
        if start >= reach:  # begins with a character that no token before it has a part of
            firsts.append(token)
            places.append(reach)
        reach = max(reach, end)
    counts = np.diff([*firsts, len(offsets)])
    parts = [text[a:b] for a, b in zip(places, [*places[1:], len(text)], strict=True)] if places else []
    sizes = (np.array([len(p.encode()) for p in parts], float), np.array([len(p) for p in parts], float))
    bytes_T, characters_T = (np.repeat(size / counts, counts) for size in sizes) if parts else (np.zeros(0), np.zeros(0))
    return bytes_T, characters_T


def key_of(number: int) -> int:
    """What an objective's randomness for a piece comes from: the same however pieces are grouped."""
    return -1 - number


def batches_of(objective: BatchMaker, pieces: Sequence[Piece], model: Any) -> Iterator[tuple[list[int], Batch]]:
    """The objective's own batches, with the numbers of the pieces that they are made of: each a row of one document."""
    for group in groups_of([len(p.ids_T) for p in pieces], model):
        rows = [pieces[i].ids_T for i in group]
        ids_RT = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for row, ids_T in zip(ids_RT, rows, strict=True):
            row[: len(ids_T)] = ids_T
        blocks = Blocks(ids_RT, [np.array([len(ids_T)], np.uint32) for ids_T in rows])
        yield group, objective.make_batch(blocks, [key_of(i) for i in group])
