"""Saving behind training, in one process: what training waits for, and what becomes of a save that fails."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zhlm.checkpoint import files
from zhlm.checkpoint import saver as module
from zhlm.checkpoint.saver import Keep, Saver, newest_together, together
from zhlm.checkpoint.sharded import StateCopy, create_moments
from zhlm.checkpoint.state import TrainState, newest
from zhlm.checkpoint.writing import Writing
from zhlm.errors import DeadlineError, RunError, StorageError
from zhlm.storage import Place

pytestmark = pytest.mark.usefixtures("one_process")


class Training:
    """A network of a few numbers, whose every step adds 1 to them, and its saver."""

    def __init__(self, folder: Path, keep: Keep, **hooks: Any) -> None:
        self.checkpoints, self.reported = Place(folder), list[int]()
        parameters = {name: torch.nn.Parameter(torch.zeros(4)) for name in ("a", "b")}
        self._optimizer = torch.optim.AdamW(parameters.values())
        create_moments(self._optimizer)
        self._parameters, self.step = parameters, 0
        hooks.setdefault("reports", lambda state: self.reported.append(state.step))
        self.saver = Saver(self.checkpoints, StateCopy(parameters, self._optimizer, 0), keep, {}, torch.device("cpu"), **hooks)

    def train(self) -> TrainState:
        self.step += 1
        with torch.no_grad():
            for parameter in self._parameters.values():
                parameter += 1
        return TrainState(step=self.step)

    def names(self) -> list[str]:
        return [name.removeprefix("step_").lstrip("0") for name in self.checkpoints.names() if name.startswith("step_")]


class Gate:
    """Holds each save before it counts, until it is opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.opened, self.reached, real = threading.Event(), threading.Event(), Writing.commit

        def commit(writing: Writing, progress: Any) -> None:
            self.reached.set()
            assert self.opened.wait(20), "nobody opened the gate"
            real(writing, progress)

        patch.setattr(Writing, "commit", commit)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def test_training_goes_on_while_a_save_is_written(tmp_path: Path, gate: Gate) -> None:
    training = Training(tmp_path, Keep(2))
    with training.saver as saver:
        saver.save(training.train())
        assert gate.reached.wait(20)
        training.train()
        saver.look()
        assert newest(training.checkpoints)[0] is None and training.reported == []
        gate.opened.set()
        saver.wait()
        found, _ = newest(training.checkpoints)
        assert found is not None and found.state.step == 1 and found.trainable()["a"].tolist() == [1.0] * 4, "as it was then"
        assert training.reported == [1]


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, gate: Gate) -> None:
    training = Training(tmp_path, Keep(2))
    with training.saver as saver:
        saver.save(training.train())
        before: list[list[str]] = []
        threading.Timer(0.3, lambda: (before.append(training.names()), gate.opened.set())).start()
        saver.save(training.train())
        assert before == [[]] and "1" in training.names(), "it began when the one before was whole"
    assert training.names() == ["1", "2"], "the end of training leaves it to come to its end"


def test_the_last_save_is_waited_for_and_none_is_done_twice(tmp_path: Path) -> None:
    training = Training(tmp_path, Keep(5))
    with training.saver as saver:
        saver.save(training.train(), wait=True)
        assert training.names() == ["1"]
        written = (tmp_path / "step_00000001").stat().st_mtime_ns
        saver.save(TrainState(step=1), wait=True)
        assert (tmp_path / "step_00000001").stat().st_mtime_ns == written


def test_a_failed_write_is_raised_at_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise StorageError("checkpoint: the disk is full")

    training = Training(tmp_path, Keep(2))
    with pytest.raises(StorageError, match="the disk is full"), training.saver as saver:
        saver.save(training.train(), wait=True)
        monkeypatch.setattr(Writing, "put", fails)
        saver.save(training.train())
        while True:
            saver.look()
            time.sleep(0.01)
    assert training.checkpoints.names() == ["step_00000001"], "the one before is whole, and nothing half-written is left"


def test_what_is_no_error_of_ours_is_raised_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StateCopy, "assemble", lambda _: 1 / 0)
    training = Training(tmp_path, Keep(2))
    with pytest.raises(RuntimeError, match="checkpoint of step 1 failed: ZeroDivisionError"), training.saver as saver:
        saver.save(training.train(), wait=True)
    assert training.names() == []


def test_a_save_in_which_nothing_moves_ends_in_a_named_error(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_S", 0.3)
    monkeypatch.setattr(module, "CLOSE_S", 0.1)
    training = Training(tmp_path, Keep(2))
    with pytest.raises(DeadlineError, match=r"step 1 waits for writing to .*step_00000001, and nothing moved"), training.saver as saver:
        saver.save(training.train(), wait=True)


def test_a_slow_save_is_not_a_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload of one file that takes several times as long as nothing may move."""
    monkeypatch.setattr(module, "STALL_S", 0.3)
    real = Writing.put

    def slowly(writing: Writing, name: str, tensors: Any) -> str:
        for _ in range(8):
            time.sleep(0.1)
            writing._beat()
        return real(writing, name, tensors)

    monkeypatch.setattr(Writing, "put", slowly)
    training = Training(tmp_path, Keep(2))
    with training.saver as saver:
        assert saver.save(training.train(), wait=True) > 0.8
    assert training.names() == ["1"]


def test_what_must_be_there_first_ends_the_save_where_it_cannot(tmp_path: Path) -> None:
    def first() -> None:
        raise StorageError("storage: the trace cannot be written")

    training = Training(tmp_path, Keep(2), first=first)
    with pytest.raises(StorageError, match="the trace cannot be written"), training.saver as saver:
        saver.save(training.train(), wait=True)
    assert training.checkpoints.names() == []


def test_reading_may_take_long_as_long_as_something_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_S", 0.3)
    monkeypatch.setattr(module, "MEET_S", 0.05)

    def work(beat: Callable[[], None], seconds: int = 8) -> str:
        for _ in range(seconds):
            time.sleep(0.1)
            beat()
        return "read"

    assert together(work, "reading") == ["read"]
    with pytest.raises(DeadlineError, match=r"^train: reading s3://x has not moved for 0 s; look whether storage\.root answers"):
        together(lambda beat: time.sleep(2), "reading s3://x")
    with pytest.raises(RuntimeError, match=r"^reading failed: ZeroDivisionError: division by zero$"):
        together(lambda beat: 1 / 0, "reading")


def test_verifying_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 100 GB has one for each chunk."""
    training = Training(tmp_path, Keep(2))
    with training.saver as saver:
        saver.save(training.train(), wait=True)
    monkeypatch.setattr(files, "CHUNK_BYTES", 64)
    beats: list[int] = []
    newest(Place(tmp_path), lambda: beats.append(1))
    size = sum(path.stat().st_size for path in (tmp_path / "step_00000001").glob("*.safetensors"))
    assert len(beats) >= size // 64


def test_the_best_is_never_pruned(tmp_path: Path) -> None:
    training = Training(tmp_path, Keep(last=2, best=1, streams=("zh", "yue")))
    with training.saver as saver:
        for zh, yue in ((3.0, 3.0), (1.0, 2.0), (2.0, 2.0), (0.5, 2.4), (2.5, 2.5)):
            saver.save(training.train(), {"zh": {"bits_per_byte": zh}, "yue": {"bits_per_byte": yue}, "en": {"bits_per_byte": 0.1}})
        saver.save(training.train(), None)
        saver.save(training.train(), {"zh": {"bits_per_byte": 0.1}}, wait=True)
    assert training.names() == ["4", "6", "7"], "4 has the lowest mean; 7 lacks a stream"
    found, _ = newest(training.checkpoints)
    assert found is not None and found.state.step == 7 and found.facts.validation == {"zh": {"bits_per_byte": 0.1}}


def test_what_was_passed_over_does_not_push_out_what_is_whole(tmp_path: Path) -> None:
    """A damaged checkpoint of step 9, from which training went back: keeping the last one must keep what comes now."""
    training = Training(tmp_path, Keep(1))
    with training.saver as saver:
        (tmp_path / "step_00000009").mkdir()
        saver.save(training.train(), wait=True)
    assert training.names() == ["1"]


def test_rows_come_before_the_checkpoint_that_ends_with_them(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    training = Training(tmp_path, Keep(2), first=lambda: seen.append([n for n in Place(tmp_path).names() if not n.startswith(".")]))
    with training.saver as saver:
        saver.save(training.train(), wait=True)
    assert seen == [[]]


def test_all_ranks_take_up_what_one_of_them_found(tmp_path: Path) -> None:
    assert newest_together(Place(tmp_path)) == (None, [])
    training = Training(tmp_path, Keep(2))
    with training.saver as saver:
        saver.save(training.train())
        saver.save(training.train(), wait=True)
    progress = tmp_path / "step_00000002" / "progress.json"
    assert newest_together(Place(tmp_path)) == newest(Place(tmp_path))
    progress.write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(RunError, match="format 99"):
        newest_together(Place(tmp_path))
    progress.unlink()
    found, passed_over = newest_together(Place(tmp_path))
    assert found is not None and found.state.step == 1 and passed_over == ["step_00000002 passed over: no progress.json"]
