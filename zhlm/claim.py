"""One process at a time works on a run: a lock between processes of one machine, and a claim in the run's folder between machines, because
an object store has no locks, and those of a network disk may be of each machine alone.

    <run>/claims/<name>.json    who works on it; written again every few seconds, and how old it is says the clock of the store

Who comes writes its claim first and looks for others then, so that of two who come at once at least one sees the other. A claim that was
not written for SILENCE_S is of a dead process and is deleted; should that process live after all, it sees so and ends. Whether another's
process lives shows its next sign of life: who comes waits for it, is refused when it comes, and takes over when it does not. So a job that
is tried again on a new machine, because the old one died, goes on by itself.
"""

import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from zhlm.beside import interruptible
from zhlm.errors import RunError, StorageError
from zhlm.storage import RETRY_S, Run, storage_errors

CLAIMS = "claims"
BEAT_S = 10.0
SILENCE_S = 2 * RETRY_S
"""A storage that is away for a while, for its owner alone, must not cost a claim."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def locked(run: Run, tell: Callable[[str], object] = lambda _: None) -> Iterator[None]:
    """Nobody else works on the run inside the block. On this machine the kernel frees the lock of a process that died; the claim of one
    that died elsewhere lets go after SILENCE_S, which is waited for, and told.

    Raises: RunError when somebody does, or took the run over while this process gave no sign of life.
    """
    path = run.here / "logs" / "lock"
    with storage_errors("writing", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below, after the lock was used
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            has_lock = True
        except BlockingIOError:
            raise RunError(f"run: another process works on {run.folder} now; wait for it, stop it, or choose another name") from None
        except OSError:  # a network disk without locks
            has_lock = False
        with storage_errors("writing", path):
            claim = _Claim(run, _replace(file, has_lock))
        claim.take(tell)
        with claim.kept():
            yield


def _replace(file: TextIO, has_lock: bool) -> tuple[str, str]:
    """Note the name of a new claim in the lock file. Returns it and the one before, if its process is surely dead: it held this lock, on
    this machine. The file may be on a disk that other machines write to."""
    file.seek(0)
    before, _, where = file.read().strip().partition(" ")
    name, here = f"{uuid.uuid4().hex[:16]}.json", machine()
    file.truncate(0)
    file.write(f"{name} {here}")
    file.flush()
    return name, before if has_lock and where == here else ""


def machine() -> str:
    """What tells this machine, and this start of it, from all others. Names alone are alike in many clusters."""
    boot = BOOT_ID.read_text(encoding="utf-8").strip() if BOOT_ID.exists() else f"{uuid.getnode():x}"
    return f"{socket.gethostname()} {boot}"


class _Claim:
    """This process's claim to a run."""

    def __init__(self, run: Run, names: tuple[str, str]) -> None:
        self._run, self._folder, (self._name, self._dead) = run, run.folder / CLAIMS, names
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        self._about = {"host": socket.gethostname(), "process": os.getpid(), "since": now}
        self._lost, self._stop = "", threading.Event()

    def take(self, tell: Callable[[str], object]) -> None:
        """Raises: RunError when another process has a claim and lives."""
        seen: dict[str, datetime] = {}
        try:
            while True:
                self._tell("asks")  # the store's clock, and a sign of life
                others = self._others()
                if others == []:
                    break
                for other in others or ():
                    beats = other["written"] != seen.get(other["name"], other["written"])
                    if beats and (other["state"] != "asks" or other["name"] < self._name):  # of those that ask, one goes on
                        raise RunError(
                            f"run: {_who(other)} works on {self._run.folder} since {other['since']} UTC; wait for it, stop it, or choose "
                            "another name"
                        )
                if others and not seen:
                    tell(
                        f"run: waits for {_who(others[0])}, who has a claim on {self._run.folder} since {others[0]['since']} UTC; "
                        f"if it shows no sign of life, its claim lets go within {SILENCE_S:.0f} s"
                    )
                seen = {o["name"]: o["written"] for o in others or ()} | seen
                time.sleep(BEAT_S / 2)
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
        infos = {i.base_name: i for i in self._folder.infos() if not i.base_name.startswith(".")}  # not what is being written
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
            sign = {"name": name, "written": info.mtime}
            try:
                living.append(json.loads(place.read_text()) | sign)
            except (StorageError, ValueError):
                if place.exists():  # what cannot be read is somebody's all the same
                    living.append({"host": "another machine", "process": "?", "since": "?", "state": "?"} | sign)
        return living

    def _tell(self, state: str) -> None:
        (self._folder / self._name).write_text(json.dumps(self._about | {"state": state}))

    def _drop(self) -> None:
        with suppress(StorageError):
            (self._folder / self._name).delete()


def _who(claim: dict[str, Any]) -> str:
    return f"{claim['host']} (process {claim['process']})"
