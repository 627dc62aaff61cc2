"""What the documents of a part are, without their text: which need no cleaning, hashes, signatures where near duplicates are looked for.

Kept in the block store under a key of the part's content and the cleaning rules, so that a packer that was killed, or another run on the
same corpus, does not read it again. Shape letters: R texts read, N that cleaning keeps, K numbers of a signature.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zhlm.pack.dedup import Hashes, hashes_of
from zhlm.pack.near import signatures
from zhlm.storage import Place, storage_errors
from zhlm.text.clean import Needs

NOT_TEXT = "not_text"
"""Why a row without text is dropped, where the stream says that it may be."""


@dataclass(frozen=True)
class Survey:
    """Of one part."""

    needs_R: Needs
    """What cleaning takes, so that packing need not find out again."""
    dropped: dict[str, int]
    """By cleaning, by reason, and rows without text."""
    hashes_N2: Hashes
    signatures_NK: npt.NDArray[Any] | None

    @staticmethod
    def of_texts(texts: Sequence[str], with_signatures: bool) -> "Survey":
        """Of cleaned texts."""
        return Survey(np.zeros(len(texts), np.uint8), {}, hashes_of(texts), signatures(texts) if with_signatures else None)

    @staticmethod
    def joined(surveys: Sequence["Survey"], needs: Sequence[Needs], dropped: dict[str, int]) -> "Survey":
        """Of batches, in order, with the needs of each and the counts of all of them."""
        hashes = np.concatenate([np.empty((0, 2), np.uint64), *(s.hashes_N2 for s in surveys)])
        parts = [s.signatures_NK for s in surveys if s.signatures_NK is not None]
        return Survey(np.concatenate([np.empty(0, np.uint8), *needs]), dropped, hashes, np.concatenate(parts) if parts else None)

    @property
    def documents(self) -> int:
        """Read, dropped ones included."""
        return len(self.needs_R) + self.dropped.get(NOT_TEXT, 0)


def _place(store: Place, key: str) -> Place:
    return store / key[:2] / f"{key}.survey.arrow"


def save_survey(store: Place, key: str, survey: Survey) -> None:
    """Write it so that a reader sees all of it or nothing."""
    facts = {"dropped": survey.dropped}
    columns = {"hash_0": pa.array(survey.hashes_N2[:, 0]), "hash_1": pa.array(survey.hashes_N2[:, 1])}
    if survey.signatures_NK is not None:
        flat = pa.array(np.ascontiguousarray(survey.signatures_NK).reshape(-1))
        columns["signature"] = pa.FixedSizeListArray.from_arrays(flat, survey.signatures_NK.shape[1])
    table = pa.table(columns).replace_schema_metadata({"zhlm": json.dumps(facts), "needs": survey.needs_R.tobytes()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    _place(store, key).write_bytes(sink.getvalue())


def load_survey(store: Place, key: str) -> Survey | None:
    """None when nobody has made it yet, or what is there is damaged or of an earlier version: it is made again."""
    place = _place(store, key)
    if not place.exists():
        return None
    try:
        with storage_errors("reading", place):
            filesystem, path = place._open()
            with filesystem.open_input_file(path) as file:
                table = pa.ipc.open_file(file).read_all().combine_chunks()
    except pa.ArrowInvalid:
        return None
    if b"needs" not in table.schema.metadata:
        return None
    facts = json.loads(table.schema.metadata[b"zhlm"])
    hashes = np.stack([table.column(name).to_numpy() for name in ("hash_0", "hash_1")], axis=1)
    found = None
    if "signature" in table.column_names:
        column = table.column("signature").combine_chunks()
        found = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    needs = np.frombuffer(table.schema.metadata[b"needs"], np.uint8)
    return Survey(needs, facts["dropped"], hashes, found)
