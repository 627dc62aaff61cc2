"""Exact duplicates: 128-bit hashes of the cleaned texts, and which of them came first.

Shape letters: N documents of one file; a hash is two uint64, hashes_N2.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

HASH_BYTES = 16

Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


def hash_of(text: str) -> bytes:
    """128 bits of a text: among a billion documents, two different ones share a hash with a chance below 1e-20."""
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()


def as_hashes(joined: bytes) -> Hashes:
    """The hashes behind one another as hashes_N2, the same on every machine."""
    return np.frombuffer(joined, "<u8").astype(np.uint64).reshape(-1, 2)


def first_copies(files: Sequence[Hashes]) -> list[Flags]:
    """Per file and document, whether it is the first of its copies, in the order of files and rows."""
    every = np.concatenate([np.empty((0, 2), np.uint64), *files])
    order = np.lexsort((every[:, 1], every[:, 0]))  # stable: among copies the first stays first
    ranked = every[order]
    first = np.ones(len(every), np.bool_)
    first[order[1:]] = (ranked[1:] != ranked[:-1]).any(axis=1)
    return np.split(first, np.cumsum([len(f) for f in files])[:-1]) if files else []


def among(hashes_N2: Hashes, others: Sequence[Hashes]) -> Flags:
    """Per document, whether one of the other files has a copy of it."""
    every = np.concatenate([np.empty((0, 2), np.uint64), *others])
    flags = np.isin(hashes_N2[:, 0], every[:, 0])  # half of the hash rules out nearly all
    known = set(map(tuple, every.tolist())) if flags.any() else set()
    flags[flags] = [tuple(pair) in known for pair in hashes_N2[flags].tolist()]
    return flags
