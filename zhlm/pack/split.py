"""What becomes of each kept document: trained on, held out, or dropped. Decided once, from hashes, in the order of files and rows.

Neither the number of tasks nor their timing can change a decision; adding a file moves no document across the split.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from zhlm.pack.dedup import Flags, Hashes, among, first_copies

Fates = npt.NDArray[np.uint8]


class Fate(IntEnum):
    TRAIN = 0
    VALIDATION = 1
    DUPLICATE = 2
    IN_HELD_OUT = 3


def held_out_by_hash(hashes_N2: Hashes, share: float) -> Flags:
    """Per document, whether it is in the validation share: a fixed function of its text alone."""
    return hashes_N2[:, 0] < np.float64(share) * 2.0**64


def decide(training: Sequence[Hashes], held_out: Sequence[Hashes], *, share: float, deduplicate: bool) -> tuple[list[Fates], list[Fates]]:
    """The fates in the training files and in the held-out files of a stream; without held-out files, `share` is held out by hash."""
    keep_training = _keep(training, deduplicate)
    keep_held_out = _keep(held_out, deduplicate)
    fates = []
    for hashes, keep in zip(training, keep_training, strict=True):
        fate = np.where(held_out_by_hash(hashes, 0.0 if held_out else share), Fate.VALIDATION, Fate.TRAIN)
        fate[~keep] = Fate.DUPLICATE
        fate[among(hashes, held_out)] = Fate.IN_HELD_OUT
        fates.append(fate.astype(np.uint8))
    validation = [np.where(keep, Fate.VALIDATION, Fate.DUPLICATE).astype(np.uint8) for keep in keep_held_out]
    return fates, validation


def _keep(files: Sequence[Hashes], deduplicate: bool) -> list[Flags]:
    return first_copies(files) if deduplicate else [np.ones(len(f), np.bool_) for f in files]
