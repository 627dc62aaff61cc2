"""What flows between stages: columns, dtypes, units, and the progress that a stage reports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BLOCK_IDS = "input_ids"
"""Column of a block: block_tokens ids, padding (id 0, never a label) at the end."""
BLOCK_ENDS = "document_ends"
"""Column of a block: where each document (or piece of a long one) ends, in tokens, ascending; the last is the fill."""


def id_dtype(vocabulary: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """The narrowest dtype that holds every id of a vocabulary of this many entries."""
    return np.dtype(np.uint16) if vocabulary <= 1 << 16 else np.dtype(np.uint32)


def block_schema(block_tokens: int, vocabulary: int) -> pa.Schema:
    """Arrow schema of a block store's data files."""
    ids = pa.from_numpy_dtype(id_dtype(vocabulary))
    return pa.schema([(BLOCK_IDS, pa.list_(ids, block_tokens)), (BLOCK_ENDS, pa.list_(pa.uint32()))])


@dataclass(frozen=True)
class Blocks:
    """Packed blocks in memory. Shape letters: B blocks, T block tokens."""

    ids_BT: npt.NDArray[Any]
    """Token ids, padded with 0 behind the last document end."""
    ends: Sequence[npt.NDArray[np.uint32]]
    """Per block, the ascending ends of its documents in tokens; the last one is the fill."""


@dataclass(frozen=True)
class Document:
    """One text of a corpus and where it came from, so that an error can name the place."""

    text: str
    path: str
    row: int
    """Line (from 1) of a text file, or row (from 1) of a table."""


@dataclass(frozen=True)
class Progress:
    """What a stage tells the person at the terminal."""

    stage: str
    done: float
    total: float
    unit: str
    """Of `done` and `total`: files, steps, documents."""
    facts: Mapping[str, float | int | str] = field(default_factory=dict)
    """Shown beside the bar, in this order: loss, tokens_per_s, workers ..."""


Report = Callable[[Progress], None]
"""How a stage reports; called often, so the receiver decides what is shown."""
