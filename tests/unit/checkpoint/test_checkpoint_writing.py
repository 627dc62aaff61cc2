"""Storage that fails while a checkpoint is written: waited for, or named at once."""

import errno
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from zhlm.checkpoint import writing as module
from zhlm.checkpoint.state import Facts, TrainState, newest, progress_of, save
from zhlm.checkpoint.writing import Writing
from zhlm.errors import StorageError
from zhlm.storage import Place, retrying, tells_waits


def write(checkpoints: Place, step: int, tells: Callable[[str], None] = lambda _: None) -> None:
    writing = Writing(checkpoints, f"step_{step:08d}", tells, lambda: None)
    writing.prepare()
    try:
        files = {f"{kind}.safetensors": {"w": torch.full((4000,), float(step))} for kind in ("trainable", "optimizer")}
        checksums = {name: writing.put(name, tensors) for name, tensors in files.items()}
        writing.commit(progress_of(TrainState(step=step), Facts(), checksums))
    finally:
        writing.discard()


class Clock:
    """Time that passes only while somebody sleeps; at each second the storage may come back."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        patch.setattr(module.time, "monotonic", lambda: self.now_s)
        patch.setattr(module.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def failing(real: Callable[..., Any], clock: Clock, until_s: float, number: int) -> Callable[..., Any]:
    def action(*arguments: Any, **named: Any) -> Any:
        if clock.now_s < until_s:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    return action


@pytest.mark.parametrize("what", ["fsync", "rename", "replace", "mkdir"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EROFS])
def test_storage_away_for_30_seconds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, number: int) -> None:
    write(Place(tmp_path), 1)
    clock, told = Clock(monkeypatch), list[str]()
    monkeypatch.setattr(os, what, failing(getattr(os, what), clock, 30, number))
    write(Place(tmp_path), 2, told.append)
    assert 30 <= clock.now_s < 60 and set(told) == {f"storage: {os.strerror(number)}"}
    found, passed_over = newest(Place(tmp_path))
    assert found is not None and found.state.step == 2 and passed_over == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_storage_that_stays_away_is_named_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Place(tmp_path), 1)
    clock = Clock(monkeypatch)
    monkeypatch.setattr(os, "fsync", failing(os.fsync, clock, 1e9, errno.EIO))
    with pytest.raises(StorageError, match=r"step_00000002 has failed for \d\d s: Input/output error; .* last whole checkpoint"):
        write(Place(tmp_path), 2)
    assert clock.now_s <= module.RETRY_S and [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def test_what_is_cut_off_after_a_long_time_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload of ten minutes, and then the connection is gone for a moment."""
    clock, ended = Clock(monkeypatch), list[float]()

    def upload() -> str:
        clock.sleep(600)
        ended.append(clock.now_s)
        if len(ended) == 1:
            raise OSError(errno.ECONNRESET, "Connection reset by peer")
        return "there"

    assert Writing(Place(tmp_path), "step_00000001", lambda _: None, lambda: None).patiently(upload) == "there"
    assert retrying("s3://bucket/file", failing(lambda: "there", clock, clock.now_s + 30, errno.ECONNRESET)) == "there"
    ended.clear()
    assert retrying("s3://bucket/file", upload) == "there" and len(ended) == 2


def test_a_folder_that_goes_away_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network disk that is mounted again: between making the folder and writing to it."""
    checkpoints, told = Place(tmp_path / "checkpoints"), list[str]()
    write(checkpoints, 1)
    clock = Clock(monkeypatch)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now_s > 20 and away.exists():
            away.rename(checkpoints.path)

    monkeypatch.setattr(module.time, "sleep", sleep)
    writing, away = Writing(checkpoints, "step_00000002", told.append, lambda: None), tmp_path / "away"
    writing.prepare()
    checkpoints.path.rename(away)
    checksum = writing.put("trainable.safetensors", {"w": torch.ones(3)})
    assert len(checksum) == 64 and told[0] == "storage: No such file or directory" and not away.exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As a disk with so much space left, for one file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_at_once_and_leaves_what_was_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Place(tmp_path), 1)
    told: list[str] = []
    with largest_file(10_000), pytest.raises(StorageError) as caught:
        write(Place(tmp_path), 2, told.append)
    free = re.search(rf"writing {tmp_path}/step_00000002 failed: .*; a file needs 15.7 KiB and ([\d.,]+) MiB are free", str(caught.value))
    assert free is not None and float(free[1].replace(",", "")) == pytest.approx(shutil.disk_usage(tmp_path).free / 2**20, rel=0.1)
    assert "lower train.keep_checkpoints" in str(caught.value) and told == []
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    found, passed_over = newest(Place(tmp_path))
    assert found is not None and found.state.step == 1 and passed_over == []


def test_a_save_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    write(Place(tmp_path), 1)
    (tmp_path / ".step_00000004.0123abcd").mkdir()
    (tmp_path / ".step_00000004.0123abcd" / "trainable.safetensors").write_bytes(b"half")
    save(Place(tmp_path), TrainState(step=3), {"w": torch.ones(1)}, {"m": torch.ones(1)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000003"]


def test_an_object_store_that_does_not_answer_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = Clock(monkeypatch), list[str]()
    answer = failing(lambda: "content", clock, 5, errno.ETIMEDOUT)
    with tells_waits(told.append):
        assert retrying("s3://bucket/file", answer) == "content"
    assert told and set(told) == {f"storage: {os.strerror(errno.ETIMEDOUT)}"}
    clock.now_s, told_before = 0.0, len(told)
    assert retrying("s3://bucket/file", answer) == "content" and len(told) == told_before
