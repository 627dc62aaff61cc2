"""Exact duplicates: 128-bit hashes of the cleaned texts, and which of them came first.

Shape letters: N documents of one part; a hash is two uint64, hashes_N2.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from xxhash import xxh128_digest

Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


def hashes_of(texts: Sequence[str]) -> Hashes:
    """128 bits of each text, the same on every machine: two different ones of a billion share a hash with a chance below 1e-20.

    XXH3 and not a cryptographic hash, which takes three times as long: whoever writes a corpus to make texts collide only loses a text.
    """
    joined = b"".join(map(xxh128_digest, map(str.encode, texts)))
    return np.frombuffer(joined, "<u8").astype(np.uint64).reshape(-1, 2)


def first_copies(parts: Sequence[Hashes]) -> list[Flags]:
    """Per part and document, whether it is the first of its copies, in the order of parts and rows."""
    every = _joined(parts)
    order = np.argsort(every[:, 0], kind="stable")  # among copies the first stays first
    if _differ_in_second_half(every, order):
        order = np.lexsort((every[:, 1], every[:, 0]))  # half a hash was not enough: once in a billion corpora, or in a test
    ranked = every[order]
    first = np.ones(len(every), np.bool_)
    first[order[1:]] = (ranked[1:] != ranked[:-1]).any(axis=1)
    return np.split(first, np.cumsum([len(p) for p in parts])[:-1]) if parts else []


def among(hashes_N2: Hashes, others: Sequence[Hashes]) -> Flags:
    """Per document, whether one of the other parts has a copy of it."""
    known, flags = _sorted(_joined(others)), np.zeros(len(hashes_N2), np.bool_)
    if not len(known):
        return flags
    place = np.searchsorted(known[:, 0], hashes_N2[:, 0])
    open_N = np.flatnonzero(known[np.minimum(place, len(known) - 1), 0] == hashes_N2[:, 0])  # half of the hash rules out nearly all
    while len(open_N):
        at = place[open_N]
        flags[open_N[known[at, 1] == hashes_N2[open_N, 1]]] = True
        place[open_N] += 1
        following = known[np.minimum(at + 1, len(known) - 1), 0] == hashes_N2[open_N, 0]
        open_N = open_N[following & (at + 1 < len(known)) & ~flags[open_N]]
    return flags


def _joined(parts: Sequence[Hashes]) -> Hashes:
    return np.concatenate([np.empty((0, 2), np.uint64), *parts])


def _sorted(hashes_N2: Hashes) -> Hashes:
    in_order = bool((hashes_N2[1:, 0] >= hashes_N2[:-1, 0]).all())
    return hashes_N2 if in_order else hashes_N2[np.argsort(hashes_N2[:, 0])]


def _differ_in_second_half(hashes_N2: Hashes, order: npt.NDArray[np.intp]) -> bool:
    halves = hashes_N2[order, 0]
    same = np.flatnonzero(halves[1:] == halves[:-1])
    return bool((hashes_N2[order[same], 1] != hashes_N2[order[same + 1], 1]).any())
