"""Near duplicates: MinHash signatures of the 5-grams of characters, and which documents resemble one before them, or one of others.

Shape letters: N documents, M others, K numbers of a signature, G n-grams of all documents together, E pairs.

Source: Broder 1997, "On the resemblance and containment of documents"; banding from Leskovec, Rajaraman, Ullman, "Mining of Massive
Datasets", chapter 3. The MinHash itself is rensa's R-MinHash, whose version is pinned because its numbers are kept in the block store.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

NGRAM_CHARS = 5
SIGNATURE_SLOTS = 128
"""512 bytes a document: a million documents fit in half a GiB. The standard error of an estimated similarity of 0.8 is 0.035."""
SEED = 1
FOUND = 0.99
"""Least chance that a pair at the threshold is compared at all."""
NEIGHBOURS = 8
"""A document is compared with the first of its band, and with this many before it."""

Signatures = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

# Odd, without a pattern: what an n-gram is reduced to before MinHash mixes it. Part of what makes signatures comparable.
_FACTORS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)


def signatures(texts: Sequence[str]) -> Signatures:
    """Signatures_NK of the texts: the share of equal slots of two is about the share of n-grams that the texts have in common.

    A text shorter than an n-gram is one n-gram. The same in every process and on every machine.
    """
    if not texts:
        return np.empty((0, SIGNATURE_SLOTS), np.uint32)
    padded = [text if len(text) >= NGRAM_CHARS else text.ljust(NGRAM_CHARS, "\0") for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), "<u4").astype(np.uint64)
    num_places = len(codes) - NGRAM_CHARS + 1
    grams = np.zeros(num_places, np.uint64)
    for at, factor in enumerate(_FACTORS):
        grams += codes[at : at + num_places] * np.uint64(factor)
    lengths = np.fromiter(map(len, padded), np.int64, len(padded))
    within = np.ones(num_places, np.bool_)
    ends = np.cumsum(lengths)[:-1]
    for back in range(1, NGRAM_CHARS):  # n-grams that would reach into the next text
        within[ends - back] = False
    offsets = np.concatenate([[0], np.cumsum(lengths - NGRAM_CHARS + 1)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(grams[within], offsets, SIGNATURE_SLOTS, SEED)
    return np.array(matrix.to_rows(), np.uint32)


def near_copies(signatures_NK: Signatures, threshold: float) -> Flags:
    """Per document, whether it resembles one before it: directly, or through others between the two.

    Pairs that agree in all of a band's slots are candidates, and count when the share of all equal slots reaches the threshold. Of each
    group that hangs together the first is not flagged, so the order of the documents says which to keep.
    """
    num_documents, num_slots = signatures_NK.shape
    band_slots = slots_of_band(threshold, num_slots)
    first_N = np.arange(num_documents)
    for start in range(0, num_slots - band_slots + 1, band_slots):
        later, earlier = _candidates(signatures_NK[:, start : start + band_slots])
        apart = first_N[later] != first_N[earlier]
        later, earlier = later[apart], earlier[apart]
        alike = similarity(signatures_NK, later, earlier) >= threshold
        _join(first_N, later[alike], earlier[alike])
    flags: Flags = first_N != np.arange(num_documents)
    return flags


def resembling(parts: Sequence[Signatures], others_MK: Signatures, threshold: float) -> list[Flags]:
    """Per part and document, whether one of the others is as similar as the threshold, directly.

    Every document of a bucket is compared, so what `near_copies` may miss is found: all pairs from a threshold of 0.51 on. That is meant
    for few others: where nearly all documents have the same passages, the time grows with the product of both numbers.
    """
    flags = [np.zeros(len(part), np.bool_) for part in parts]
    if not len(others_MK):
        return flags
    num_slots = others_MK.shape[1]
    band_slots = slots_that_miss_none(threshold, num_slots)
    for start in range(0, num_slots - band_slots + 1, band_slots):
        band = slice(start, start + band_slots)
        keys_M = _keys(others_MK[:, band])
        order_M = np.argsort(keys_M)
        ranked_M = keys_M[order_M]
        for part_NK, found_N in zip(parts, flags, strict=True):
            _find(part_NK, band, found_N, others_MK, ranked_M, order_M, threshold)
    return flags


def slots_of_band(threshold: float, num_slots: int = SIGNATURE_SLOTS) -> int:
    """The most slots a band can have so that a pair at the threshold agrees in at least one band with a chance of 0.99."""
    for slots in range(num_slots, 1, -1):
        if 1 - (1 - threshold**slots) ** (num_slots // slots) >= FOUND:
            return slots
    return 1


def slots_that_miss_none(threshold: float, num_slots: int = SIGNATURE_SLOTS) -> int:
    """The most slots a band can have so that a pair at the threshold agrees in all of at least one band, whatever the others hold.

    0.8 allows 25 of 128 slots to differ, so of 26 bands one is untouched: 4 slots each. Below 0.51 that would be bands of one slot, in
    which everything meets everything; two are kept while the chance of a miss is below 0.01.
    """
    differing = num_slots - ceil(threshold * num_slots)
    return max(num_slots // (differing + 1), min(2, slots_of_band(threshold, num_slots)))


def similarity(
    signatures_NK: Signatures, first_E: Places, second_E: Places, others_MK: Signatures | None = None, pairs_at_once: int = 1 << 16
) -> npt.NDArray[np.float64]:
    """Share of equal slots of each pair, an estimate of the Jaccard similarity. The second of a pair is one of the others, if given."""
    second_NK = signatures_NK if others_MK is None else others_MK
    shares = np.empty(len(first_E))
    for start in range(0, len(first_E), pairs_at_once):
        part = slice(start, start + pairs_at_once)
        shares[part] = (signatures_NK[first_E[part]] == second_NK[second_E[part]]).mean(axis=1)
    return shares


def _candidates(band_NB: Signatures) -> tuple[Places, Places]:
    """Pairs (later, earlier) of documents that agree in a band."""
    keys = _keys(band_NB)
    order = np.argsort(keys, kind="stable")  # equal keys stay in the order of the documents
    ranked = keys[order]
    opens = np.ones(len(keys), np.bool_)
    opens[1:] = ranked[1:] != ranked[:-1]
    first_of_bucket = np.flatnonzero(opens)[np.cumsum(opens) - 1]
    later = [np.flatnonzero(~opens)]
    earlier = [first_of_bucket[later[0]]]
    rank = later[0]
    for back in range(1, NEIGHBOURS + 1):
        rank = rank[rank - back > first_of_bucket[rank]]
        later.append(rank)
        earlier.append(rank - back)
    return order[np.concatenate(later)], order[np.concatenate(earlier)]


def _find(
    part_NK: Signatures,
    band: slice,
    found_N: Flags,
    others_MK: Signatures,
    ranked_M: npt.NDArray[np.uint64],
    order_M: Places,
    threshold: float,
) -> None:
    """Flag, in place, what agrees in the band with one of the others (by their sorted keys) and reaches the threshold with it."""
    keys_N, last = _keys(part_NK[:, band]), len(ranked_M) - 1
    place_N = np.searchsorted(ranked_M, keys_N)
    open_N = np.flatnonzero(~found_N & (ranked_M[np.minimum(place_N, last)] == keys_N))
    while len(open_N):
        found_N[open_N] = similarity(part_NK, open_N, order_M[place_N[open_N]], others_MK) >= threshold
        place_N[open_N] += 1
        open_N = open_N[~found_N[open_N] & (place_N[open_N] <= last)]
        open_N = open_N[ranked_M[place_N[open_N]] == keys_N[open_N]]


def _keys(band_NB: Signatures) -> npt.NDArray[np.uint64]:
    """A hash of each document's slots of a band."""
    keys = np.zeros(len(band_NB), np.uint64)
    for slot in range(band_NB.shape[1]):
        keys = (keys + band_NB[:, slot]) * np.uint64(_FACTORS[slot % len(_FACTORS)])
        keys ^= keys >> np.uint64(29)
    return keys


def _join(first_N: Places, later_E: Places, earlier_E: Places) -> None:
    """Give the documents that hang together by the pairs the smallest number among them, in place."""
    while len(later_E):
        smaller = np.minimum(first_N[later_E], first_N[earlier_E])
        np.minimum.at(first_N, first_N[later_E], smaller)
        np.minimum.at(first_N, first_N[earlier_E], smaller)
        while (deeper := first_N[first_N] != first_N).any():
            first_N[deeper] = first_N[first_N[deeper]]
        apart = first_N[later_E] != first_N[earlier_E]
        later_E, earlier_E = later_E[apart], earlier_E[apart]
