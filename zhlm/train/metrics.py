"""What training writes as it goes: metrics.jsonl and TensorBoard's copy of it, a row per logged step by one worker; and on request trace/,
each worker's own blocks."""

import json
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from zhlm.blocks.read import BlockReader
from zhlm.errors import StorageError
from zhlm.records import Blocks
from zhlm.storage import Place, Run, storage_errors
from zhlm.track.tensorboard import FOLDER, EventFile


def read_rows(place: Place, until_step: int | None = None) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl up to a step; with step 0 none, for a training that begins tells them again."""
    text = place.read_text() if until_step != 0 and place.exists() else ""
    return [row for row in map(json.loads, text.splitlines()) if until_step is None or row["step"] <= until_step]


class MetricsLog:
    """Rows of a run so far. A restart drops the rows after its checkpoint, so that no step is told twice."""

    def __init__(self, run: Run, resumed_step: int) -> None:
        self._place = run.metrics
        self._rows = read_rows(self._place, resumed_step)
        self._events = EventFile(run.folder / FOLDER, self._rows)

    def append(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns the row as it is kept, with the time."""
        self._rows.append(row | {"unix_s": round(time.time(), 3)})
        self._events.append(self._rows[-1])
        return self._rows[-1]

    def flush(self) -> None:
        """Make the rows visible to readers; the file is small, and an object store cannot append."""
        self._place.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
        self._events.flush()


class BlockTrace:
    """Which blocks one rank trained on: a line per step,
    `{"step": 7, "attempt": 4, "workers": 2, "blocks": [[37, "zh", "ab12...", 5, 912873123], ...]}`.

    `attempt` is the step that the workers started from. Where a step was done again, rank 0's last line tells which attempt of how many
    workers counts. A block is its place in the order, its stream, the start of its part's key, its row there, and the crc32 of its ids as
    they were read (32-bit integers, without padding).

    A step is written before it is trained on. Where storage is away its line waits, but no checkpoint counts before it is written.
    """

    def __init__(self, folder: Place, rank: int, workers: int, attempt: int, reader: BlockReader) -> None:
        self._place, self._reader = folder / f"rank_{rank}.jsonl", reader
        self._attempt = {"attempt": attempt, "workers": workers}
        self._waiting: list[str] = []
        self._lock = threading.Lock()  # the thread that saves catches up too

    def append(self, step: int, indices: Sequence[int], blocks: Blocks | None) -> str:
        """Write a step. Returns what storage said where it has to wait."""
        rows = list(self._rows(indices, blocks)) if blocks is not None else []
        with self._lock:
            self._waiting.append(json.dumps({"step": step, **self._attempt, "blocks": rows}) + "\n")
        try:
            self.catch_up()
        except StorageError as error:
            return str(error)
        return ""

    def catch_up(self) -> None:
        """Write the steps that are not written yet. Raises: StorageError."""
        with self._lock:
            if self._waiting:
                self._write("".join(self._waiting))
                self._waiting.clear()

    def _write(self, lines: str) -> None:
        if self._place.remote:  # object stores cannot append
            self._place.write_text((self._place.read_text() if self._place.exists() else "") + lines)
            return
        with storage_errors("writing", self._place):
            self._place.path.parent.mkdir(exist_ok=True)
            with open(self._place.path, "ab+") as file:
                if file.tell():  # a killed worker, or a disk that was full, stopped within a line
                    file.seek(-1, os.SEEK_END)
                    lines = lines if file.read(1) == b"\n" else f"\n{lines}"
                file.write(lines.encode())

    def _rows(self, indices: Sequence[int], blocks: Blocks) -> Iterator[list[Any]]:
        streams = list(self._reader.weights)
        for index, at, ids, ends in zip(indices, self._reader.addresses(indices), blocks.ids_BT, blocks.ends, strict=True):
            checksum = zlib.crc32(ids[: int(ends[-1])].astype(np.dtype("<u4")).tobytes())
            yield [index, streams[at.stream], self._reader.part(at.stream, at.shard).key[:12], at.row, checksum]
