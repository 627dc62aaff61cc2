"""What becomes of each kept document: trained on, held out, or dropped. Decided once, from hashes, in the order of parts and rows.

Neither the number of tasks nor their timing can change a decision; adding a file moves no document across the split.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from zhlm.pack.dedup import Flags, Hashes, among, first_copies, hashes_of
from zhlm.pack.near import SIGNATURE_SLOTS, Signatures, near_copies, resembling

Fates = npt.NDArray[np.uint8]


class Fate(IntEnum):
    TRAIN = 0
    VALIDATION = 1
    DUPLICATE = 2
    IN_HELD_OUT = 3
    """Equals or resembles what this or another stream holds out."""
    NEAR_DUPLICATE = 4
    """Resembles a document of its stream on the same side of the split, which is kept."""


def held_out_by_hash(hashes_N2: Hashes, share: float) -> Flags:
    """Per document, whether it is in the validation share: a fixed function of its text alone."""
    return hashes_N2[:, 0] < np.float64(share) * 2.0**64


def decide(training: Sequence[Hashes], held_out: Sequence[Hashes], *, share: float, deduplicate: bool) -> tuple[list[Fates], list[Fates]]:
    """The fates in the training parts and in the held-out parts of a stream, by hashes; without held-out parts, `share` is held out.

    Nothing on both sides: what equals a held-out document is never trained on.
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
    return fates[: len(training)], fates[len(training) :]


def drop_near(streams: Sequence[tuple[Sequence[Fates], Sequence[Signatures]]], threshold: float) -> None:
    """Change the fates of all streams in place so that no training document resembles what any stream validates on.

    Which documents are validated on follows from the validation documents of their stream alone, so that streams can be asked in any
    order. Then training documents that resemble one of them go, and then those that resemble another of their stream.
    """
    for fates, signatures in streams:
        _keep_one(Fate.VALIDATION, fates, signatures, threshold)
    validated = _of_fate(Fate.VALIDATION, [pair for fates, signatures in streams for pair in zip(fates, signatures, strict=True)])
    for fates, signatures in streams:
        for part, found in zip(fates, resembling(signatures, validated, threshold), strict=True):
            part[(part == Fate.TRAIN) & found] = Fate.IN_HELD_OUT
        _keep_one(Fate.TRAIN, fates, signatures, threshold)


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


def _keep_one(fate: Fate, fates: Sequence[Fates], signatures: Sequence[Signatures], threshold: float) -> None:
    """Of a stream's documents with this fate that resemble each other, keep the first."""
    copies = near_copies(_of_fate(fate, list(zip(fates, signatures, strict=True))), threshold)
    for part in fates:
        places = np.flatnonzero(part == fate)
        part[places[copies[: len(places)]]] = Fate.NEAR_DUPLICATE
        copies = copies[len(places) :]


def _of_fate(fate: Fate, parts: Sequence[tuple[Fates, Signatures]]) -> Signatures:
    return np.concatenate([np.empty((0, SIGNATURE_SLOTS), np.uint32), *(signatures[fates == fate] for fates, signatures in parts)])
