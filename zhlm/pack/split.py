"""What becomes of each kept document: trained on, held out, or dropped. Decided once, from hashes, in the order of parts and rows.

Neither the number of tasks nor their timing can change a decision; adding a file moves no document across the split.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from zhlm.pack.dedup import Flags, Hashes, among, first_copies, hashes_of
from zhlm.pack.near import Signatures, near_copies

Fates = npt.NDArray[np.uint8]


class Fate(IntEnum):
    TRAIN = 0
    VALIDATION = 1
    DUPLICATE = 2
    IN_HELD_OUT = 3
    NEAR_DUPLICATE = 4


def held_out_by_hash(hashes_N2: Hashes, share: float) -> Flags:
    """Per document, whether it is in the validation share: a fixed function of its text alone."""
    return hashes_N2[:, 0] < np.float64(share) * 2.0**64


def decide(
    training: Sequence[Hashes],
    held_out: Sequence[Hashes],
    *,
    share: float,
    deduplicate: bool,
    near: float | None = None,
    training_signatures: Sequence[Signatures | None] = (),
    held_out_signatures: Sequence[Signatures | None] = (),
) -> tuple[list[Fates], list[Fates]]:
    """The fates in the training parts and in the held-out parts of a stream; without held-out parts, `share` is held out by hash.

    Nothing on both sides: what equals a held-out document is never trained on, nor, with `near` (the least similarity), what resembles one.
    """
    fates = [_by_hash(hashes, 0.0 if held_out else share) for hashes in training]
    fates += [np.full(len(hashes), Fate.VALIDATION, np.uint8) for hashes in held_out]
    if deduplicate:
        for part, first in zip(fates, [*first_copies(training), *first_copies(held_out)], strict=True):
            part[~first] = Fate.DUPLICATE
    sizes = [len(hashes) for hashes in training]
    if held_out and sizes:
        for part, found in zip(fates, np.split(among(np.concatenate(training), held_out), np.cumsum(sizes)[:-1]), strict=False):
            part[found] = Fate.IN_HELD_OUT
    if near is not None:
        _drop_near(fates, [*training_signatures, *held_out_signatures], near)
    return fates[: len(training)], fates[len(training) :]


def fates_inline(texts: Sequence[str], share: float, held_out_N2: Hashes) -> Fates:
    """What can be said of texts without seeing any others: in the validation share, or equal to a held-out document. No duplicates."""
    if share == 0 and not len(held_out_N2):
        return np.full(len(texts), Fate.TRAIN, np.uint8)
    hashes = hashes_of(texts)
    fates = _by_hash(hashes, share)
    fates[among(hashes, [held_out_N2])] = Fate.IN_HELD_OUT
    return fates


def _by_hash(hashes_N2: Hashes, share: float) -> Fates:
    return np.where(held_out_by_hash(hashes_N2, share), Fate.VALIDATION, Fate.TRAIN).astype(np.uint8)


def _drop_near(fates: list[Fates], signatures: Sequence[Signatures | None], threshold: float) -> None:
    """Of documents that resemble each other, keep one: a validation document if there is one, else the first."""
    found = [s for s in signatures if s is not None]
    assert [len(s) for s in found] == [len(f) for f in fates], "every part needs signatures when near duplicates are dropped"
    if not fates:
        return
    joined = np.concatenate(fates)
    # Validation documents first, each kind in the order of parts and rows; what is dropped already takes no part.
    order = np.concatenate([np.flatnonzero(joined == Fate.VALIDATION), np.flatnonzero(joined == Fate.TRAIN)])
    joined[order[near_copies(np.concatenate(found)[order], threshold)]] = Fate.NEAR_DUPLICATE
    for part, decided in zip(fates, np.split(joined, np.cumsum([len(f) for f in fates])[:-1]), strict=True):
        part[:] = decided
