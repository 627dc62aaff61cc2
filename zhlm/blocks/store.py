"""The block store: data files of packed blocks, keyed by content and shared by all runs of a storage root, and a run's ledger of its own.

    <root>/_blocks/ab/ab12...train.arrow    Arrow IPC, columns `input_ids` and `document_ends` (see records.py)
    <root>/_blocks/ab/ab12...json           what the part came from and what was dropped; written last, so it says that the part is whole
    <root>/<run>/blocks/plan.json           the parts of every stream, in order
    <root>/<run>/blocks/ledger.jsonl        the committed ones, a line each, appended as they come

A part is a bounded piece of a stream's files; its key is a hash of their content and of everything that decides its blocks. Two packers
that make the same part write the same bytes, and the last rename wins; a killed one leaves temporary files that nobody reads
and a later one deletes (leftovers.py).
Shape letters: B blocks, T block tokens.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa

from zhlm.blocks.leftovers import create_locked, remove_leftovers, temporary_folder
from zhlm.errors import RunError, StorageError
from zhlm.records import BLOCK_ENDS, BLOCK_IDS, Blocks, block_schema, id_dtype
from zhlm.storage import Place, storage_errors

PLAN = "plan.json"
LEDGER = "ledger.jsonl"
HEARTBEAT = "packer.json"
"""Rewritten every few seconds while a packer lives, so that a reader that waits for blocks knows whether to go on waiting:
{"state": "packing" | "done" | "failed", "message": why it failed, "beat": a number that no other beat has}."""

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class Shard:
    """One data file of the store."""

    file: str
    """Its name inside the store."""
    blocks: int
    documents: int
    tokens: int
    utf8_bytes: int
    """Bytes of the documents' text, as UTF-8: what bits per byte divides by."""
    characters: int
    sha256: str
    cut_tokens: int = 0
    """Of the documents' ends, left out because they are longer than a block (`pack.truncate`); their bytes and characters are counted."""


@dataclass(frozen=True)
class Part:
    """What became of a bounded piece of a stream's files."""

    key: str
    source: str
    """The corpus file (the first, where small ones were put together)."""
    shards: dict[Split, Shard]
    documents: int = 0
    """Read, dropped ones included."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Documents by reason."""


@dataclass(frozen=True)
class Planned:
    """A part before it is packed."""

    key: str
    source: str
    splits: tuple[Split, ...]
    """Those it gives blocks to."""


@dataclass(frozen=True)
class Plan:
    """What a run's blocks will be: known before the first of them is packed."""

    recipe: dict[str, Any]
    """Everything but the files that decides the blocks: tokenizer, packing, cleaning."""
    streams: dict[str, tuple[Planned, ...]]

    def of_split(self, stream: str, split: Split) -> list[int]:
        """The stream's parts that give blocks to a split; a shard's number in the order is its place in this list."""
        return [n for n, part in enumerate(self.streams[stream]) if split in part.splits]


# ---- data files


class ShardWriter:
    """Writes one data file, batch by batch. It has its name only when `close` was called, and counts only when its part is committed."""

    def __init__(self, store: Place, key: str, split: Split, block_tokens: int, vocabulary: int) -> None:
        self._name = f"{key[:2]}/{key}.{split}.arrow"
        self._final = store / self._name
        # Two packers may be at the same part, on machines whose process numbers are the same, and one may have died here before.
        # What is written to an object store and not closed appears under its name all the same, so that gets whole files only.
        self._place = Place(temporary_folder(store, key) / f".{key}.{split}.{uuid.uuid4().hex[:8]}")
        self._schema = block_schema(block_tokens, vocabulary)
        self._dtype, self._block_tokens, self._blocks = id_dtype(vocabulary), block_tokens, 0
        with storage_errors("writing", self._place):
            self._file = _HashedFile(create_locked(self._place.path))
            self._writer = pa.ipc.new_file(self._file, self._schema)

    def write(self, blocks: Blocks) -> None:
        """Append blocks."""
        if not len(blocks.ends):
            return
        flat = pa.array(np.ascontiguousarray(blocks.ids_BT, dtype=self._dtype).reshape(-1))
        offsets = np.cumsum([0, *map(len, blocks.ends)]).astype(np.int32)
        ends = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(blocks.ends), pa.uint32()))
        columns = [pa.FixedSizeListArray.from_arrays(flat, self._block_tokens), ends]
        with storage_errors("writing", self._place):
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._blocks += len(blocks.ends)

    def close(self, *, documents: int, tokens: int, utf8_bytes: int, characters: int, cut_tokens: int = 0) -> Shard:
        """End the file and give it its name."""
        with storage_errors("writing", self._final):
            self._writer.close()
            self._file.close()
        self._final.adopt(self._place.path)
        return Shard(self._name, self._blocks, documents, tokens, utf8_bytes, characters, self._file.sha256.hexdigest(), cut_tokens)

    def discard(self) -> None:
        """Leave nothing behind. After `close` this does nothing."""
        with suppress(OSError):
            self._file.close()
        self._place.path.unlink(missing_ok=True)


class _HashedFile:
    """A binary file that hashes what is written to it: reading it back would double the work."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._file.close()


def open_shard(store: Place, shard: Shard, *, verify: bool = True) -> pa.Table:
    """A shard as a memory-mapped table (a remote one is copied to this machine once).

    Raises: StorageError when the file is missing, its hash is not the one of the ledger, or it is no Arrow file.
    """
    place, remedy = store / shard.file, "run `zhlm blocks RUN --repair`, then the same command again"
    if not place.exists():
        raise StorageError(f"blocks: {place} is missing, the ledger says that it holds {shard.blocks} blocks; {remedy}", path=str(place))
    path = place.on_disk()
    try:
        with storage_errors("reading", path):
            mapped = pa.memory_map(str(path))
            if verify and (got := hashlib.sha256(mapped.read_buffer()).hexdigest()) != shard.sha256:
                raise StorageError(f"blocks: {path} has the hash {got[:12]}, the ledger says {shard.sha256[:12]}; {remedy}", path=str(path))
            table = pa.ipc.open_file(mapped).read_all()
    except pa.ArrowInvalid as error:
        raise StorageError(f"blocks: {path} is damaged ({error}); {remedy}", path=str(path)) from error
    if table.num_rows != shard.blocks or table.column_names != [BLOCK_IDS, BLOCK_ENDS]:
        raise StorageError(f"blocks: {path} holds {table.num_rows} blocks, the ledger says {shard.blocks}; {remedy}", path=str(path))
    return table


def bytes_of(store: Place, shards: Sequence[Shard]) -> int:
    """What shards take in the store; one that is missing takes nothing."""
    with storage_errors("looking at", store):
        filesystem, path = store._open()
        return sum(info.size or 0 for info in filesystem.get_file_info([f"{path}/{s.file}" for s in shards]))


# ---- parts


def commit_part(store: Place, part: Part, **notes: Any) -> None:
    """Say that a part is whole; its data files must have their names. `notes` are kept with it."""
    (store / part.key[:2] / f"{part.key}.json").write_text(json.dumps(asdict(part) | {"notes": notes}, ensure_ascii=False))


def find_part(store: Place, key: str) -> tuple[Part, dict[str, Any]] | None:
    """A committed part and its notes; None when nobody has packed it yet, or its word is damaged: it is packed again."""
    place = store / key[:2] / f"{key}.json"
    if not place.exists():
        return None
    try:
        data = json.loads(place.read_text())
        notes = data.pop("notes")
        return _part(data), notes
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def delete_part(store: Place, key: str) -> None:
    """Forget a part, its word first, so that nobody takes what is left for whole."""
    for name in [f"{key}.json", *(n for n in (store / key[:2]).names() if n.startswith(f"{key}."))]:
        (store / key[:2] / name).delete()


def _part(data: dict[str, Any]) -> Part:
    return Part(**data | {"shards": {split: Shard(**s) for split, s in data["shards"].items()}})


# ---- a run's heartbeat, plan and ledger


@dataclass(frozen=True)
class Heartbeat:
    """The last sign of life of a run's packer."""

    state: Literal["packing", "done", "failed"]
    message: str
    beat: int
    """Differs from beat to beat. A clock made it, but machines' clocks differ: compare it for equality only."""


def beat(blocks: Place, state: Literal["packing", "done", "failed"], message: str = "") -> None:
    """Say that the packer lives, or how it ended. `blocks` is the run's blocks folder."""
    (blocks / HEARTBEAT).write_text(json.dumps(asdict(Heartbeat(state, message, time.time_ns())), ensure_ascii=False))


def read_heartbeat(blocks: Place) -> Heartbeat | None:
    """None before the first one."""
    place = blocks / HEARTBEAT
    return Heartbeat(**json.loads(place.read_text())) if place.exists() else None


def write_plan(blocks: Place, plan: Plan) -> None:
    """`blocks` is the run's blocks folder."""
    streams = {name: [asdict(p) for p in parts] for name, parts in plan.streams.items()}
    (blocks / PLAN).write_text(json.dumps({"recipe": plan.recipe, "streams": streams}, ensure_ascii=False))


def read_plan(blocks: Place) -> Plan | None:
    """None before the packer has made it. Raises: RunError when it cannot be read."""
    place = blocks / PLAN
    if not place.exists():
        return None
    try:
        data = json.loads(place.read_text())
        streams = {n: tuple(Planned(p["key"], p["source"], tuple(p["splits"])) for p in parts) for n, parts in data["streams"].items()}
        return Plan(data["recipe"], streams)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(
            f"blocks: {place} is broken ({error}); delete {blocks} and run the same command again, parts in the store are not packed again"
        ) from error


class Ledger:
    """The committed parts of a run. One packer appends (the run is locked for others), any number of readers follow."""

    def __init__(self, blocks: Place) -> None:
        self._place = blocks / LEDGER
        self._lines: list[str] | None = None
        """Of a remote ledger, all of them."""
        self._rest_s = 0.0

    def read(self) -> dict[tuple[str, int], Part]:
        """(stream, number in the plan) -> part. A last line without its end is being written, or its writer died: it does not count.

        Raises: RunError that names a broken line before the last.
        """
        whole, _, _ = self._text().rpartition("\n")
        return dict(self._parse(number, line) for number, line in enumerate(whole.split("\n"), 1) if line)

    def _text(self) -> str:
        """Whatever it holds: a line may be torn inside a character."""
        if not self._place.exists():
            return ""
        with storage_errors("reading", self._place):
            filesystem, path = self._place._open()
            with filesystem.open_input_stream(path) as stream:
                return bytes(stream.read()).decode("utf-8", errors="replace")

    def sound(self) -> tuple[dict[tuple[str, int], Part], list[str]]:
        """What can still be read of it, and a line on each line that cannot."""
        parts: dict[tuple[str, int], Part] = {}
        problems: list[str] = []
        whole, _, torn = self._text().rpartition("\n")
        for number, line in enumerate(whole.split("\n") if whole else [], 1):
            try:
                parts |= [self._parse(number, line)]
            except RunError:
                problems.append(f"line {number} is broken")
        return parts, [*problems, *(["the last line is torn"] if torn else [])]

    def _parse(self, number: int, line: str) -> tuple[tuple[str, int], Part]:
        try:
            data = json.loads(line)
            return (data.pop("stream"), data.pop("number")), _part(data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(
                f"blocks: {self._place} line {number} is broken ({error}); run `zhlm blocks RUN --repair`, then the same command again"
            ) from error

    def start(self, committed: Mapping[tuple[str, int], Part]) -> None:
        """Make the ledger hold just these; a torn last line is gone with that."""
        lines = [_line(*place, part) for place, part in committed.items()]
        self._place.write_text("".join(lines))
        self._lines = lines if self._place.remote else None

    def append(self, stream: str, number: int, part: Part) -> None:
        """Commit a part: on return it is on the disk, or in an object store, which cannot append, a little later."""
        line = _line(stream, number, part)
        if self._place.remote:
            self._lines = self._lines if self._lines is not None else self._text().splitlines(keepends=True)
            self._lines.append(line)
            if time.monotonic() >= self._rest_s:
                self.flush()
            return
        with storage_errors("writing", self._place), open(self._place.path, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def flush(self) -> None:
        """Write what an object store still lacks. `append` does it often enough to take a tenth of the time: 20,000 parts are 15 MB."""
        if self._lines is not None:
            started_s = time.monotonic()
            self._place.write_text("".join(self._lines))
            self._rest_s = time.monotonic() + 9 * (time.monotonic() - started_s)


def _line(stream: str, number: int, part: Part) -> str:
    return json.dumps({"stream": stream, "number": number, **asdict(part)}, ensure_ascii=False) + "\n"


@contextmanager
def writing(store: Place, key: str, splits: Sequence[Split], block_tokens: int, vocabulary: int) -> Iterator[dict[Split, ShardWriter]]:
    """Writers for a part's shards, which leave nothing behind when the block fails."""
    writers: dict[Split, ShardWriter] = {}
    if store.remote:  # what a worker left lies on its own machine, and is looked for nowhere else
        remove_leftovers(store)
    try:
        for split in splits:
            writers[split] = ShardWriter(store, key, split, block_tokens, vocabulary)
        yield writers
    finally:
        for writer in writers.values():
            writer.discard()
