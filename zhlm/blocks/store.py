"""The block store of one split of one stream: Arrow files of equal blocks, and a ledger that says which are committed.

    blocks/<stream>/<split>/ledger.jsonl        one line per committed shard, in shard order
    blocks/<stream>/<split>/shard-00000.arrow   Arrow IPC, columns `input_ids` and `document_ends` (see records.py)

Shard n comes from source file n of the stream, so a shard may hold no block at all. Shape letters: B blocks, T block tokens.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from zhlm.errors import StorageError
from zhlm.records import BLOCK_ENDS, BLOCK_IDS, Blocks, block_schema, id_dtype
from zhlm.storage import Place, storage_errors

LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class Shard:
    """One committed data file: a line of the ledger."""

    index: int
    file: str
    blocks: int
    documents: int
    tokens: int
    utf8_bytes: int
    """Bytes of the documents' text, as UTF-8: what bits per byte divides by."""
    characters: int
    source: str
    """The corpus file it was packed from."""
    sha256: str


def write_shard(
    split: Place, index: int, blocks: Blocks, *, vocabulary: int, documents: int, tokens: int, utf8_bytes: int, characters: int, source: str
) -> Shard:
    """Write one data file. It counts only once `commit` has put it into the ledger."""
    data = _arrow_bytes(blocks, vocabulary)
    name = f"shard-{index:05d}.arrow"
    place = split / name
    with storage_errors("writing", place):
        filesystem, path = place._open()
        filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
    checksum = hashlib.sha256(data).hexdigest()
    return Shard(index, name, len(blocks.ends), documents, tokens, utf8_bytes, characters, source, checksum)


def _arrow_bytes(blocks: Blocks, vocabulary: int) -> memoryview:
    num_blocks, block_tokens = blocks.ids_BT.shape
    schema = block_schema(block_tokens, vocabulary)
    flat = pa.array(np.ascontiguousarray(blocks.ids_BT, dtype=id_dtype(vocabulary)).reshape(-1))
    offsets = np.cumsum([0, *(len(e) for e in blocks.ends)]).astype(np.int32)
    values = np.concatenate(blocks.ends) if num_blocks else np.empty(0, np.uint32)
    ends = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.uint32()))
    columns = [pa.FixedSizeListArray.from_arrays(flat, block_tokens), ends]
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return sink.getbuffer()


def commit(split: Place, shards: Sequence[Shard]) -> None:
    """Replace the ledger by these shards, in index order. One process commits for a split."""
    rows = sorted(shards, key=lambda s: s.index)
    (split / LEDGER).write_text("".join(json.dumps(asdict(s)) + "\n" for s in rows))


def read_ledger(split: Place) -> list[Shard]:
    """The committed shards in index order; empty when there is no ledger yet."""
    place = split / LEDGER
    if not place.exists():
        return []
    return [Shard(**json.loads(line)) for line in place.read_text().splitlines()]


def open_shard(split: Place, shard: Shard) -> pa.Table:
    """A shard as a memory-mapped table (a remote one is copied to this machine once)."""
    path = (split / shard.file).on_disk()
    try:
        with storage_errors("reading", path):
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise StorageError(f"blocks: {path} is damaged ({error}); delete {split} and pack again", path=str(path)) from error
    if table.num_rows != shard.blocks or table.column_names != [BLOCK_IDS, BLOCK_ENDS]:
        raise StorageError(
            f"blocks: {path} holds {table.num_rows} blocks, the ledger says {shard.blocks}; delete {split} and pack again", path=str(path)
        )
    return table
