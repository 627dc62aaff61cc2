"""Saving behind training: the step waits for a copy in memory, a thread does the rest.

At most one save is under way. Between steps the ranks ask each other how it goes; a failure is raised by all of them there, so that none is
left waiting for the others.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import distributed

from zhlm.checkpoint.files import Beat, file_name
from zhlm.checkpoint.sharded import StateCopy
from zhlm.checkpoint.state import Checkpoint, Facts, Scores, TrainState, copy_here, folder_name, newest, progress_of, prune
from zhlm.checkpoint.writing import Writing
from zhlm.errors import DeadlineError, ZhlmError
from zhlm.storage import Place

STALL_S = 600.0
"""Storage that moved nothing for so long is dead; a slow one may take its time. One that answers with errors is given up long before."""
MEET_S = 1.0
"""Between two meetings of ranks that wait for one of them."""
LOOK_S = 0.02
"""Between two looks while waiting."""
REPORT_S = 1.0
"""Between two reports: one waits until the driver took the one before, which it does twice a second."""
CLOSE_S = 10.0
"""For a save under way when training failed: most often it comes to its end, and less is lost."""

T = TypeVar("T")


def newest_together(checkpoints: Place) -> tuple[Checkpoint | None, list[str]]:
    """As `newest`, the same on all ranks, whatever else happens in the folder; one rank verifies what all can read. Collective.

    Raises: as `newest` and `copy_here`; DeadlineError when storage is silent for STALL_S.
    """
    rank = distributed.get_rank()
    found, passed_over = together(lambda beat: newest(checkpoints, beat) if rank == 0 else (None, []), f"reading {checkpoints}")[0]
    if found is None:
        return None, passed_over
    return together(lambda beat: copy_here(found, checkpoints, beat), f"fetching {found.folder.name}")[rank], passed_over


def together(work: Callable[[Beat], T], doing: str) -> list[T]:
    """What the work of every rank gave, by rank; however long it takes, while it calls its beat on any of them. Collective: they meet
    every MEET_S, because no collective may wait for as long as 100 GB take to read.

    Raises: on all ranks, what one of them met; DeadlineError when nothing moved for STALL_S.
    """
    own, brought = _Work(), list[T]()

    def run() -> None:
        try:
            brought.append(work(own.beat))
        except Exception as error:
            own.problem = _to_tell(error, doing)

    thread = threading.Thread(target=run, daemon=True, name="zhlm-together")
    thread.start()
    while True:
        thread.join(MEET_S)
        runs, stands = thread.is_alive(), own.stands
        ranks: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(ranks, (runs, stands, own.problem, [] if runs else brought))
        if problem := next((problem for *_, problem, _ in ranks if problem), None):
            raise problem
        if not any(runs for runs, *_ in ranks):
            return [result for *_, (result,) in ranks]
        if all(stands for runs, stands, *_ in ranks if runs):
            raise DeadlineError(
                f"train: {doing} has not moved for {STALL_S:.0f} s; look whether storage.root answers, then give the same command again"
            )


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: see `prune`."""

    last: int
    best: int = 0
    streams: tuple[str, ...] = ()
    step: int | None = None


@dataclass
class _Work:
    """What a thread does."""

    moved_s: float = field(default_factory=time.monotonic)
    """When something last happened."""
    problem: Exception | None = None

    @property
    def stands(self) -> bool:
        return time.monotonic() - self.moved_s > STALL_S

    def beat(self) -> None:
        self.moved_s = time.monotonic()


@dataclass(kw_only=True)
class _Save(_Work):
    """The one that is under way."""

    state: TrainState
    facts: Facts
    doing: str = "the copy in memory"

    def goes_on_with(self, doing: str) -> None:
        self.doing = doing
        self.beat()


class Saver:
    """Saves the training state of all ranks into `checkpoints`. Every method is collective. A context manager, so that a failed training
    leaves its last save to come to its end."""

    def __init__(
        self,
        checkpoints: Place,
        copy: StateCopy,
        keep: Keep,
        made_for: Mapping[str, Any],
        device: torch.device,
        resumed_step: int = 0,
        *,
        tells: Callable[[str], None] = lambda _: None,
        first: Callable[[], None] = lambda: None,
        reports: Callable[[TrainState], None] = lambda _: None,
    ) -> None:
        """`tells` hears what is waited for. `first`: what each rank writes before a checkpoint counts. `reports` is called by all ranks
        with what has become whole, at most about once a second."""
        self._checkpoints, self._copy, self._keep, self._made_for, self._device = checkpoints, copy, keep, made_for, device
        self._tells, self._first, self._reports = tells, first, reports
        self._rank = distributed.get_rank()
        self._thread: threading.Thread | None = None
        self._save = _Save(state=TrainState(), facts=Facts())
        self._reported_s = 0.0
        self._saved_step = resumed_step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.join(CLOSE_S)
        if self._thread is None or not self._thread.is_alive():
            self._copy.close()

    def save(self, state: TrainState, validation: Scores | None = None, *, wait: bool = False) -> float:
        """Begin to save, once the save before has ended; `wait` until this one has. Returns the seconds that training stood still.

        Raises: as `look`.
        """
        started_s = time.monotonic()
        self.wait()
        if self._saved_step != state.step:  # an interruption may come right behind a save
            self._copy.take()
            self._saved_step, self._save = state.step, _Save(state=state, facts=Facts(validation or {}, self._made_for))
            self._thread = threading.Thread(target=self._run, args=(self._save,), daemon=True, name=f"zhlm-save-{state.step}")
            self._thread.start()
        if wait:
            self.wait()
        return time.monotonic() - started_s

    def wait(self) -> None:
        """Until no save is under way. Raises: as `look`."""
        while self._thread is not None:
            self.look()
            if self._thread is not None:
                time.sleep(LOOK_S)

    def look(self) -> None:
        """Take note of a save that has ended; does nothing when none is under way.

        Raises on all ranks: StorageError, CheckpointError, as one of them met it; DeadlineError when nothing moves.
        """
        if self._thread is None:
            return
        runs, save = self._thread.is_alive(), self._save
        stands = runs and save.stands
        report_is_due = self._rank == 0 and time.monotonic() - self._reported_s > REPORT_S
        counts = torch.tensor([runs, stands, save.problem is not None, report_is_due], dtype=torch.int64, device=self._device)
        distributed.all_reduce(counts)
        num_running, num_standing, num_failed, num_due = counts.tolist()
        if 0 < num_running == num_standing:  # one that has written its own part stands until the last one has
            save.problem = DeadlineError(
                f"train: the checkpoint of step {save.state.step} waits for {save.doing}, and nothing moved for {STALL_S:.0f} s; look "
                "whether storage.root answers, then give the same command again"
            )
        if num_failed or 0 < num_running == num_standing:
            self._raise(save)
        if num_running:
            return
        self._thread.join()
        self._thread = None
        if num_due:
            self._reported_s = time.monotonic()
            self._reports(save.state)

    def _raise(self, save: _Save) -> None:
        """The first rank's problem, on all ranks."""
        own = save.problem and _to_tell(save.problem, f"the checkpoint of step {save.state.step}")
        problems: list[Exception | None] = [None] * distributed.get_world_size()
        distributed.all_gather_object(problems, own)
        raise next(p for p in problems if p is not None)

    def _run(self, save: _Save) -> None:
        """In the thread."""
        writing = Writing(self._checkpoints, folder_name(save.state.step), self._tells, save.beat)
        try:
            self._write(save, writing)
        except Exception as error:
            save.problem = error
        if self._rank == 0:
            writing.discard()

    def _write(self, save: _Save, writing: Writing) -> None:
        save.goes_on_with(f"storage, {self._checkpoints}")
        folders = self._meet(save, lambda: writing.prepare() if self._rank == 0 else "")
        writing.folder = folders[0]
        save.goes_on_with("the tensors of the other workers")
        tensors = self._copy.assemble()
        save.goes_on_with(f"writing to {writing.place}")
        of = self._copy.num_files
        files = {file_name(kind, self._rank, of): own for kind, own in tensors.items() if own}
        written = self._meet(save, lambda: self._write_own(writing, files))
        if self._rank == 0:
            writing.commit(progress_of(save.state, save.facts, {name: sha256 for own in written for name, sha256 in own.items()}))
            keep = self._keep
            writing.patiently(lambda: prune(self._checkpoints, keep.last, keep.best, keep.streams, save.state.step, keep.step))

    def _write_own(self, writing: Writing, files: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, str]:
        """This rank's files and what must be there before they count. Returns the checksums."""
        checksums = {name: writing.put(name, tensors) for name, tensors in files.items()}
        writing.patiently(self._first)
        return checksums

    def _meet(self, save: _Save, action: Callable[[], Any]) -> list[Any]:
        """What every rank's action gave; where one of them failed, all of them raise that."""
        own: Any
        try:
            own = action()
        except Exception as error:
            own = _to_tell(error, save.doing)
        doing = save.doing
        save.goes_on_with("the other workers, who write their own part")
        brought = self._copy.meet(own)
        for other in brought:
            if isinstance(other, Exception):
                raise other
        save.goes_on_with(doing)
        return brought


def _to_tell(error: Exception, doing: str) -> Exception:
    """What other ranks can be told: an error of ours, or one that stands for what may not be pickled."""
    return error if isinstance(error, ZhlmError) else RuntimeError(f"{doing} failed: {type(error).__name__}: {error}")
