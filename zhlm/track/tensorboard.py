"""The rows of metrics.jsonl as TensorBoard's event file: one event per row.

    {run}/tensorboard/events.out.tfevents.<milliseconds of its start>

A restart begins a new file with the rows that still count, and deletes the one of the attempt before: no step is lost, and none is there
twice, whoever reads. In an object store, which cannot append, the file is written whole every UPLOAD_EVERY_S seconds, and whenever a
row of validation comes, which the last row always is.
"""

import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from zhlm.storage import Place, storage_errors

Row = Mapping[str, Any]
FOLDER = "tensorboard"
UPLOAD_EVERY_S = 30.0


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row by flat names: `{"step": 8, "validation": {"zh": {"bits_per_byte": 2.1}}}` gives `bits_per_byte/zh`."""
    about = ("step", "unix_s")
    flat = {k: float(v) for k, v in row.items() if k not in about and isinstance(v, int | float) and not isinstance(v, bool)}
    return flat | {f"{kind}/{name}": value for name, scores in row.get("validation", {}).items() for kind, value in scores.items()}


class EventFile:
    """The event file of one attempt, begun with the rows of those before that count."""

    def __init__(self, folder: Place, rows: Iterable[Row]) -> None:
        earlier = folder.names()
        self._place = folder / f"events.out.tfevents.{time.time_ns() // 1_000_000:013d}"
        # A TensorBoard that is open forgets what it read of the attempt before.
        begin = [_version(), _restart()] if earlier else [_version()]
        data = b"".join(map(_record, begin)) + b"".join(map(_event, rows))
        self._place.write_bytes(data)
        self._written, self._waiting, self._size = data if folder.remote else b"", b"", len(data)
        self._is_due, self._uploaded_s = False, time.monotonic()
        for name in earlier:
            (folder / name).delete()

    def append(self, row: Row) -> None:
        self._waiting += _event(row)
        self._is_due |= "validation" in row or time.monotonic() - self._uploaded_s > UPLOAD_EVERY_S

    def flush(self) -> None:
        """Write what waits. Raises: StorageError, and then it still waits."""
        if not self._waiting or (self._place.remote and not self._is_due):
            return
        if self._place.remote:
            self._place.write_bytes(self._written + self._waiting)
            self._written += self._waiting
            self._is_due, self._uploaded_s = False, time.monotonic()
        else:
            with storage_errors("writing", self._place), open(self._place.path, "r+b") as file:
                file.seek(self._size)  # over what a full disk took of it the last time
                file.write(self._waiting)
            self._size += len(self._waiting)
        self._waiting = b""


def _version() -> Event:
    return Event(wall_time=time.time(), file_version="brain.Event:2")


def _restart() -> Event:
    return Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START))


def _event(row: Row) -> bytes:
    values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(row).items()]
    return _record(Event(wall_time=row.get("unix_s", 0.0), step=row["step"], summary=Summary(value=values)))


def _record(event: Event) -> bytes:
    """Source: the record format of TensorFlow's tfrecord files, with checksums of the length and of the data."""
    data: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
