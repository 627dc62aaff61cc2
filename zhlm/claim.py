"""One process at a time works on a run: a lock of this machine, and for a run in an object store, which has no locks, a claim there.

    <run>/claims/<name>.json    who works on it; written again every few seconds, and how old it is says the clock of the store

Who comes writes its claim first and looks for others then, so that of two who come at once at least one sees the other. A claim that was
not written for SILENCE_S is of a dead process and is deleted; should that process live after all, it sees so and ends.
"""

import fcntl
import json
import os
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from zhlm.beside import interruptible
from zhlm.errors import RunError, StorageError
from zhlm.storage import RETRY_S, Run, storage_errors

CLAIMS = "claims"
BEAT_S = 10.0
SILENCE_S = 2 * RETRY_S
"""A storage that is away for a while, for its owner alone, must not cost a claim."""


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Nobody else works on the run inside the block. Locally the kernel frees the lock of a process that died.

    Raises: RunError when somebody does, or took the run over while this process gave no sign of life.
    """
    path = run.here / "logs" / "lock"
    with storage_errors("writing", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below, after the lock was used
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"run: another process works on {run.folder} now; wait for it, stop it, or choose another name") from None
        if not run.folder.remote:
            yield
            return
        with storage_errors("writing", path):
            claim = _Claim(run, _replace(file))
        claim.take()
        with claim.kept():
            yield


def _replace(file: TextIO) -> tuple[str, str]:
    """Note the name of a new claim in the lock file. Returns it and the one before, whose process is dead: it held this lock."""
    file.seek(0)
    before, name = file.read().strip(), f"{uuid.uuid4().hex[:16]}.json"
    file.truncate(0)
    file.write(name)
    file.flush()
    return name, before


class _Claim:
    """This process's claim to a run in an object store."""

    def __init__(self, run: Run, names: tuple[str, str]) -> None:
        self._run, self._folder, (self._name, self._dead) = run, run.folder / CLAIMS, names
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        self._about = {"host": socket.gethostname(), "process": os.getpid(), "since": now}
        self._lost, self._stop = "", threading.Event()

    def take(self) -> None:
        """Raises: RunError when another process has a claim and lives."""
        self._tell("asks")
        try:
            other = next(iter(self._others() or ()), None)
            if other is not None:
                raise RunError(
                    f"run: {_who(other)} works on {self._run.folder} since {other['since']} UTC; wait for it, stop it, or choose another "
                    f"name; if that machine is gone, run the same command again in {SILENCE_S:.0f} s"
                )
            self._tell("works")
        except BaseException:
            self._drop()
            raise

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Signs of life as long as the block lasts."""
        thread = threading.Thread(target=self._beat, daemon=True, name="zhlm-claim")
        thread.start()
        try:
            with interruptible():
                yield
        except KeyboardInterrupt:
            if not self._lost:
                raise
        finally:
            self._stop.set()
            thread.join(timeout=60)
            self._drop()
        if self._lost:
            raise RunError(f"run: {self._lost} took {self._run.folder} over while this process was out of reach; it goes on there")

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(StorageError):  # the next one may get through
                others = self._others()
                working = [o for o in others or () if o["state"] == "works"]
                if others is None or working:
                    self._lost = _who(working[0]) if working else "another process"
                    if not self._stop.is_set():
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                self._tell("works")

    def _others(self) -> list[dict[str, Any]] | None:
        """Claims of other processes that live; those of dead ones are deleted. None: this one was."""
        infos = {i.base_name: i for i in self._folder.infos()}
        own = infos.pop(self._name, None)
        if own is None:
            return None
        living = []
        for name, info in infos.items():
            place = self._folder / name
            if name == self._dead or (own.mtime - info.mtime).total_seconds() > SILENCE_S:
                with suppress(StorageError):  # somebody else was first
                    place.delete()
                continue
            try:
                living.append(json.loads(place.read_text()))
            except (StorageError, ValueError):
                if place.exists():  # what cannot be read is somebody's all the same
                    living.append({"host": "another machine", "process": "?", "since": "?", "state": "asks"})
        return living

    def _tell(self, state: str) -> None:
        (self._folder / self._name).write_text(json.dumps(self._about | {"state": state}))

    def _drop(self) -> None:
        with suppress(StorageError):
            (self._folder / self._name).delete()


def _who(claim: dict[str, Any]) -> str:
    return f"{claim['host']} (process {claim['process']})"
