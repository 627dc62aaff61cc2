"""New embedding rows from old ones that are used alike: static vectors of all pieces, trained on the corpus, say which those are.

Source: the idea is FOCUS (Dobler and de Melo, 2023), which trains fastText. Here the vectors are a truncated SVD of positive pointwise
mutual information, with the settings of Levy, Goldberg and Dagan, "Improving Distributional Similarity with Lessons Learned from Word
Embeddings" (2015): it needs seconds, no further package, and gives the same numbers each time. What we added: an old piece that spells new
ones has their neighbours too, for the extended tokenizer hardly leaves it a place of its own in the new language.

Shape letters: I ids of all texts, U different ids in them, O old ids with a vector, N new ids with one, P pairs of neighbours, T top.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from zhlm.embeddings.initialise import SEED, Mixture

WINDOW_TOKENS = 2
"""Neighbours on each side: near ones tell what a piece is, far ones what a text is about. 2 was better than 5 (bits per byte, measured)."""
WIDTH = 128
"""Of the static vectors."""
CONTEXT_POWER = 0.75
"""Flattens the frequencies of contexts, against a bias to rare ones."""
MOST_SIMILAR = 32
"""Old rows that a new one may be mixed from."""
CHUNK_ROWS = 1024

Ints = npt.NDArray[np.int64]


def similarity(
    ids_I: npt.NDArray[np.integer], offsets: npt.NDArray[np.integer], first_id: int, spellings: Sequence[Sequence[int]]
) -> tuple[Mixture, int]:
    """How each new row is mixed from the old rows whose pieces have similar neighbours, and how many new pieces do not occur in the
    texts: those are the mean of their spelling.

    Text n is ids_I[offsets[n]:offsets[n + 1]], in ids of the extended tokenizer; new piece n has the id first_id + n.
    """
    terms = {first_id + n: (list(s), [1 / len(s)] * len(s) if s else []) for n, s in enumerate(spellings)}
    seen_U, place_I = np.unique(ids_I, return_inverse=True)
    new_N = seen_U[seen_U >= first_id]
    near = _neighbours(place_I.astype(np.int64), np.asarray(offsets, np.int64), len(seen_U))
    old_O, of_old = _of_old_ids(near, seen_U, spellings, first_id)
    if len(new_N) and len(of_old.counts_P):
        of_new = near.only(seen_U[near.rows_P] >= first_id)
        # Ids are sorted, so the new ones are the last: their rows move up to stand behind the old ones'.
        rows_P = np.concatenate([of_old.rows_P, of_new.rows_P - (len(seen_U) - len(new_N)) + len(old_O)])
        joined = _Pairs(rows_P, np.concatenate([of_old.columns_P, of_new.columns_P]), np.concatenate([of_old.counts_P, of_new.counts_P]))
        vectors = _vectors(joined, (len(old_O) + len(new_N), len(seen_U)))
        for row, mixture in zip(new_N.tolist(), _most_similar(vectors[: len(old_O)], vectors[len(old_O) :], old_O), strict=True):
            terms[row] = mixture
    return Mixture.of(list(terms.values())), len(spellings) - len(new_N)


@dataclass(frozen=True)
class _Pairs:
    """A sparse matrix of counts: P places in it that are not zero, each once."""

    rows_P: Ints
    columns_P: Ints
    counts_P: Ints

    @staticmethod
    def summed(rows: Ints, columns: Ints, counts: Ints, num_columns: int) -> "_Pairs":
        codes, where = np.unique(rows * num_columns + columns, return_inverse=True)
        return _Pairs(codes // num_columns, codes % num_columns, np.bincount(where, counts, len(codes)).astype(np.int64))

    def only(self, kept_P: npt.NDArray[np.bool_]) -> "_Pairs":
        return _Pairs(self.rows_P[kept_P], self.columns_P[kept_P], self.counts_P[kept_P])


def _neighbours(place_I: Ints, offsets: Ints, num: int) -> _Pairs:
    """How often each id stands near each other one, on either side."""
    text_I = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    none = np.empty(0, np.int64)
    sums = _Pairs(none, none, none)
    for distance in range(1, WINDOW_TOKENS + 1):
        same = text_I[distance:] == text_I[:-distance]
        left, right = place_I[:-distance][same], place_I[distance:][same]
        rows, columns = np.concatenate([sums.rows_P, left, right]), np.concatenate([sums.columns_P, right, left])
        sums = _Pairs.summed(rows, columns, np.concatenate([sums.counts_P, np.ones(2 * len(left), np.int64)]), num)
    return sums


def _of_old_ids(near: _Pairs, seen_U: Ints, spellings: Sequence[Sequence[int]], first_id: int) -> tuple[Ints, _Pairs]:
    """The old ids that occur or spell what occurs, and their neighbours."""
    holds = [[int(row)] if row < first_id else spellings[row - first_id] for row in seen_U]
    sizes_U = np.asarray([len(ids) for ids in holds], np.int64)
    old_O, inside = np.unique(np.asarray([old for ids in holds for old in ids], np.int64), return_inverse=True)
    starts_U = np.cumsum(sizes_U) - sizes_U
    repeats_P = sizes_U[near.rows_P]
    nth = np.arange(repeats_P.sum()) - np.repeat(np.cumsum(repeats_P) - repeats_P, repeats_P)
    rows = inside[np.repeat(starts_U[near.rows_P], repeats_P) + nth].astype(np.int64)
    columns, counts = np.repeat(near.columns_P, repeats_P), np.repeat(near.counts_P, repeats_P)
    return old_O, _Pairs.summed(rows, columns, counts, max(1, len(seen_U)))


def _vectors(pairs: _Pairs, shape: tuple[int, int]) -> torch.Tensor:
    """Unit vectors of the rows of a matrix of counts."""
    of_row = np.bincount(pairs.rows_P, pairs.counts_P, shape[0])
    of_column = np.bincount(pairs.columns_P, pairs.counts_P, shape[1]) ** CONTEXT_POWER
    expected_P = of_row[pairs.rows_P] * of_column[pairs.columns_P] / of_column.sum()
    information_P = np.maximum(0, np.log(pairs.counts_P / expected_P)).astype(np.float32)
    places = torch.from_numpy(np.stack([pairs.rows_P, pairs.columns_P]))
    matrix = torch.sparse_coo_tensor(places, torch.from_numpy(information_P), shape, check_invariants=False, is_coalesced=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        left, singular, _ = torch.svd_lowrank(matrix, q=min(WIDTH, *shape), niter=4)
    return torch.nn.functional.normalize(left * singular.sqrt())


def _most_similar(old: torch.Tensor, new: torch.Tensor, old_O: Ints) -> list[tuple[list[int], list[float]]]:
    found: list[tuple[list[int], list[float]]] = []
    for chunk in torch.split(new, CHUNK_ROWS):
        top = (chunk @ old.t()).topk(min(MOST_SIMILAR, len(old)))
        for weights, places in zip(sparsemax(top.values), top.indices, strict=True):
            used = weights > 0
            found.append((old_O[places[used].numpy()].tolist(), weights[used].tolist()))
    return found


def sparsemax(scores_NT: torch.Tensor) -> torch.Tensor:
    """The point of the probability simplex that is nearest to each row of scores; the rows are sorted from high to low.

    Source: Martins and Astudillo, "From Softmax to Sparsemax" (2016), algorithm 1.
    """
    sums = scores_NT.cumsum(-1)
    place = torch.arange(1, scores_NT.shape[-1] + 1)
    support = (1 + place * scores_NT > sums).sum(-1, keepdim=True)
    threshold = (sums.gather(-1, support - 1) - 1) / support
    return (scores_NT - threshold).clamp(min=0)
