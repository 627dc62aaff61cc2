"""One checkpoint on its way into the run folder, whole or not at all, through storage that is away for a while.

Locally everything is written into a hidden folder that is renamed at the end. An object store cannot rename: there progress.json, which
makes a checkpoint whole, is written last.
"""

import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from zhlm.cache import scratch
from zhlm.checkpoint.files import Beat, file_bytes, write_tensors
from zhlm.errors import StorageError
from zhlm.storage import Place, tells_waits

PROGRESS = "progress.json"
RETRY_S = 60.0
"""How long a storage that fails at a save is tried again."""
RETRY_PAUSE_S = 1.0
"""Before the second try; doubled each time, up to RETRY_PAUSE_MOST_S."""
RETRY_PAUSE_MOST_S = 5.0
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Numbers of errors that waiting does not mend."""

_OURS = re.compile(r"\.step_\d+\.")
T = TypeVar("T")


class Writing:
    """The steps of writing one checkpoint; each may be done on another rank. `tells` hears what is waited for."""

    def __init__(self, checkpoints: Place, name: str, tells: Callable[[str], None], beat: Beat) -> None:
        self._checkpoints, self.place, self._tells, self._beat = checkpoints, checkpoints / name, tells, beat
        self.folder = ""
        """Name of the folder that files go to; it is known when `prepare` has been done."""

    def prepare(self) -> str:
        """Remove what killed processes left, and make the folder. One rank does it, and gives all others its name as `folder`."""
        return self.patiently(self._prepare)

    def _prepare(self) -> str:
        if self.place.remote:
            self.folder = self.place.name
            self.place.delete()  # of a save that was cut off
        else:
            for left in _leftovers(self._checkpoints):
                left.delete()
            self.folder = f".{self.place.name}.{uuid.uuid4().hex[:8]}"
            (self._checkpoints / self.folder).path.mkdir(parents=True)
        return self.folder

    def put(self, name: str, tensors: Mapping[str, torch.Tensor]) -> str:
        """Write one file and verify it; returns its sha256. Raises: CheckpointError, StorageError."""
        return self.patiently(lambda: self._put(name, tensors), needed=file_bytes(tensors))

    def _put(self, name: str, tensors: Mapping[str, torch.Tensor]) -> str:
        target = self._checkpoints / self.folder / name
        with _local(target) as file:
            checksum = write_tensors(file, tensors, self._beat)
            if target.remote:
                target.adopt(file, self._beat)
        return checksum

    def commit(self, progress: Mapping[str, Any]) -> None:
        """Make the checkpoint count: from here on it is the newest."""
        text = json.dumps(progress, indent=1, ensure_ascii=False)
        self.patiently(lambda: self._commit(text), needed=len(text))

    def _commit(self, text: str) -> None:
        folder = self._checkpoints / self.folder
        if not self.place.remote and not folder.exists() and (self.place / PROGRESS).exists():
            return  # it was renamed, and only what came after failed
        (folder / PROGRESS).write_text(text)
        if not self.place.remote:
            self.place.delete()
            os.rename(folder.path, self.place.path)
            _sync(self._checkpoints.path)

    def discard(self) -> None:
        """Leave nothing of an unfinished checkpoint. Never raises: something else went wrong already."""
        if self.folder and not self.place.remote:
            shutil.rmtree((self._checkpoints / self.folder).path, ignore_errors=True)

    def patiently(self, action: Callable[[], T], needed: int = 0) -> T:
        """The result of an action; while storage fails, it is tried again for RETRY_S seconds. They count from its first failure: what was
        cut off in the middle of a long upload is worth another one.

        Raises: StorageError after that time, or at once when a disk is full: `needed` is how many bytes the action wanted.
        """
        failing_since_s: float | None = None
        pause_s = RETRY_PAUSE_S
        while True:
            self._beat()
            try:
                with tells_waits(self._tells):
                    return action()
            except (OSError, StorageError) as error:
                cause = error if isinstance(error, OSError) else error.__cause__
                if not isinstance(cause, OSError):
                    raise
                reason = cause.strerror or (str(cause).strip().splitlines() or ["no reason given"])[0]
                if cause.errno in FULL:
                    full = self._full(reason if cause.errno == errno.EFBIG else "the disk is full", needed)
                    raise StorageError(full, path=str(self.place)) from error
                failing_since_s = time.monotonic() if failing_since_s is None else failing_since_s
                tried_s = time.monotonic() - failing_since_s
                if tried_s + pause_s > RETRY_S:
                    raise StorageError(
                        f"storage: writing {self.place} has failed for {tried_s:.0f} s: {reason}; check storage.root, then give the "
                        "same command again: training goes on from the last whole checkpoint",
                        path=str(self.place),
                    ) from error
            self._tells(f"storage: {reason}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_PAUSE_MOST_S)

    def _full(self, reason: str, needed: int) -> str:
        full = f"storage: writing {self.place} failed: {reason}; a file needs {_size(needed)}"
        if self.place.remote:
            return f"{full}; free some space, here or there"
        free = shutil.disk_usage(self._checkpoints.path).free
        return (
            f"{full} and {_size(free)} are free; free some space, lower train.keep_checkpoints, or set storage.root to another disk; the "
            "checkpoints before it are whole"
        )


@contextmanager
def _local(target: Place) -> Iterator[Path]:
    """Where a file is written first: its own place, or a scratch folder of this machine. A file that failed is gone."""
    if target.remote:
        with scratch() as folder:
            yield folder / target.name
        return
    try:
        yield target.path
    except BaseException:
        target.path.unlink(missing_ok=True)
        raise


def _leftovers(checkpoints: Place) -> list[Place]:
    """Folders of checkpoints whose process was killed while it wrote them."""
    return [checkpoints / name for name in checkpoints.names() if _OURS.match(name)]


def _sync(folder: Path) -> None:
    """Put a rename onto the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
