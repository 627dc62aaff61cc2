"""TensorBoard's file: every row once, in order, whatever the restarts, as its own kind of reader finds it."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from zhlm.errors import StorageError
from zhlm.storage import Place, Run
from zhlm.track import tensorboard
from zhlm.track.tensorboard import EventFile, scalars
from zhlm.train.metrics import MetricsLog, read_rows


def records(file: Path) -> Iterator[Event]:
    """What a reader of the format makes of a file: checksums are checked, a torn end is an error."""
    data = file.read_bytes()
    while data:
        length, length_sum = struct.unpack("<QI", data[:12])
        content, (content_sum,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
        assert (masked_crc32c(data[:8]), masked_crc32c(content)) == (length_sum, content_sum)
        yield Event.FromString(content)
        data = data[16 + length :]


def told(folder: Path) -> list[tuple[int, str, float]]:
    (file,) = folder.iterdir()
    first, *events = records(file)
    assert first.file_version == "brain.Event:2" and "tfevents" in file.name
    return [(e.step, v.tag, pytest.approx(v.simple_value, rel=1e-6)) for e in events for v in e.summary.value]


def step_row(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "loss_nats": loss, "grad_norm": None, "packed": True}


def scores_row(step: int, bits: float) -> dict[str, Any]:
    return {"step": step, "validation": {"zh": {"bits_per_byte": bits}, "en": {"bits_per_byte": 1.5}}}


def test_numbers_of_a_row_have_flat_names() -> None:
    assert scalars(step_row(3, 2.5) | {"unix_s": 9.0, "workers": 2}) == {"loss_nats": 2.5, "workers": 2.0}
    assert scalars(scores_row(4, 2.0)) == {"bits_per_byte/zh": 2.0, "bits_per_byte/en": 1.5}


def test_one_event_per_row_and_a_restart_drops_and_doubles_nothing(tmp_path: Path) -> None:
    run = Run(Place(tmp_path))
    log = MetricsLog(run, 0)
    for row in (scores_row(0, 3.0), step_row(1, 5.0), step_row(2, 4.0), scores_row(2, 2.5), step_row(3, 3.9)):
        log.append(row)
        log.flush()
    first = told(tmp_path / "tensorboard")
    assert [(step, tag) for step, tag, _ in first] == [
        (0, "bits_per_byte/zh"), (0, "bits_per_byte/en"), (1, "loss_nats"), (2, "loss_nats"), (2, "bits_per_byte/zh"),
        (2, "bits_per_byte/en"), (3, "loss_nats"),
    ]  # fmt: skip
    before = {row["step"]: row["unix_s"] for row in read_rows(run.metrics) if "loss_nats" in row}

    again = MetricsLog(run, 2)
    again.append(step_row(3, 3.8))
    again.flush()
    assert told(tmp_path / "tensorboard") == [*first[:-1], (3, "loss_nats", pytest.approx(3.8, rel=1e-6))]
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = list(records(file))
    assert (events[1].session_log.status, events[1].step) == (SessionLog.START, 0), "an open TensorBoard forgets the attempt before"
    assert {e.step: e.wall_time for e in events if e.summary.value and e.summary.value[0].tag == "loss_nats" and e.step < 3} == {
        1: before[1], 2: before[2]
    }  # fmt: skip

    anew = MetricsLog(run, 0)
    anew.append(step_row(1, 9.0))
    anew.flush()
    assert told(tmp_path / "tensorboard") == [(1, "loss_nats", 9.0)], "training that starts anew"


class Kept:
    """A place in an object store."""

    remote = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.writes = folder, 0

    def __truediv__(self, name: str) -> "Kept":
        self.file = self.folder / name
        return self

    def names(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir())

    def write_bytes(self, data: bytes) -> None:
        self.writes += 1
        self.file.write_bytes(data)

    def delete(self) -> None:
        self.file.unlink()


def test_an_object_store_gets_the_whole_file_now_and_then_and_with_every_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place: Any = Kept(tmp_path)
    file = EventFile(place, [step_row(1, 5.0)])
    for step in (2, 3):
        file.append(step_row(step, 4.0))
        file.flush()
    assert place.writes == 1 and [step for step, *_ in told(tmp_path)] == [1]
    file.append(scores_row(3, 2.0))
    file.flush()
    assert place.writes == 2 and [step for step, *_ in told(tmp_path)] == [1, 2, 3, 3, 3]
    monkeypatch.setattr(tensorboard, "UPLOAD_EVERY_S", 0.0)
    file.append(step_row(4, 4.0))
    file.flush()
    file.flush()
    assert place.writes == 3 and [step for step, *_ in told(tmp_path)][-1] == 4


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room(tmp_path: Path) -> None:
    log = EventFile(Place(tmp_path), [step_row(1, 5.0)])
    (file,) = tmp_path.iterdir()
    aside = file.rename(tmp_path.parent / "aside")
    log.append(step_row(2, 4.0))
    with pytest.raises(StorageError):
        log.flush()
    torn = aside.rename(file)
    torn.write_bytes(torn.read_bytes() + b"half a rec")
    log.append(step_row(3, 3.0))
    log.flush()
    assert [step for step, *_ in told(tmp_path)] == [1, 2, 3]
