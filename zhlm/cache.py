"""Copies of remote files and folders on this machine: each made once, the longest unused deleted when they take too much.

    <temporary folder>/zhlm-cache-<user>/<stamp>/<name>    the stamp stands for address and content, so a changed file is another copy
    <temporary folder>/zhlm-cache-<user>/<stamp>/.held     locked by those who use it; when it was last asked for is the folder's time

A folder, which is a model or a checkpoint, is in use until the process ends: a server loads its model again weeks later. A file is opened
as soon as it is asked for, and one that is open, or mapped into memory, stays readable when its name is gone.
"""

import fcntl
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CACHE_SHARE = 0.5
"""Of the disk space that would be free without copies, so much may they take. Not a number of bytes: a model may be larger than that."""
UNUSED_S = 14 * 24 * 3600.0
"""What nobody asked for in so long is deleted whatever its size."""
YOUNG_S = 600.0
"""What was asked for so lately stays: whoever has its path may not have opened it yet."""
WATCH_S = 1.0
"""Between two looks at how much of a copy is here."""

_HELD = ".held"
_TRASH = ".trash-"
_held: dict[Path, int] = {}
"""Folders in use by this process, with the file descriptors that keep them locked."""
_rest_s = 0.0


def cached_copy(stamp: str, name: str, fetch: Callable[[Path], None]) -> Path:
    """The copy that is there, or what `fetch` writes to the path it is given. Raises: what fetching raises; OSError of the disk."""
    with in_use(stamp) as folder:
        copy = folder / name
        if not copy.exists():
            temporary = copy.with_name(f"{name}.{uuid.uuid4().hex[:8]}")
            fetch(temporary)
            try:
                os.rename(temporary, copy)
            except OSError:  # another process on this machine was first, with the same content
                shutil.rmtree(temporary, ignore_errors=True)
            prune()
        if copy.is_dir() and folder not in _held:
            _held[folder] = _hold(folder)
    return copy


@contextmanager
def scratch() -> Iterator[Path]:
    """A fresh folder for what will be uploaded, gone after the block; what a killed process left there goes as unused copies do."""
    with in_use(f"upload-{uuid.uuid4().hex[:16]}") as folder:
        work = folder / "files"
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def watched(folder: Path, beat: Callable[[], None] | None) -> Iterator[None]:
    """Inside, `beat` is called whenever the folder has grown."""
    stop = threading.Event()

    def watch() -> None:
        size = 0
        while beat is not None and not stop.wait(WATCH_S):
            if (now := _bytes_of(folder)) != size:
                size = now
                beat()

    thread = threading.Thread(target=watch, daemon=True, name="zhlm-fetch")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def in_use(stamp: str) -> Iterator[Path]:
    """The folder of a stamp, which nobody deletes inside the block."""
    folder = _root() / stamp
    with _all_locked(fcntl.LOCK_SH):
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        held = _hold(folder)
    try:
        yield folder
    finally:
        os.close(held)


def prune() -> None:
    """Delete what is too much, the longest unused first; never what is in use. Looking takes a tenth of the time at most."""
    global _rest_s
    if time.monotonic() < _rest_s:
        return
    started_s, root = time.monotonic(), _root()
    found = sorted((used_s, folder, _bytes_of(folder)) for folder in root.iterdir() if (used_s := _last_used_s(folder)) is not None)
    total = sum(size for *_, size in found)
    most = CACHE_SHARE * (shutil.disk_usage(root).free + total)
    for used_s, folder, size in found:
        if (total > most or time.time() - used_s > UNUSED_S) and _throw_away(folder):
            total -= size
    for trash in root.glob(f"{_TRASH}*"):  # also of a process that was killed here
        shutil.rmtree(trash, ignore_errors=True)
    _rest_s = time.monotonic() + 9 * (time.monotonic() - started_s)


def _throw_away(folder: Path) -> bool:
    """Out of the way at once; whoever asks for it now gets a new one."""
    with _all_locked(fcntl.LOCK_EX), suppress(OSError):
        used_s = _last_used_s(folder)
        if used_s is not None and time.time() - used_s > YOUNG_S and not _is_held(folder):
            os.rename(folder, folder.with_name(f"{_TRASH}{uuid.uuid4().hex[:8]}"))
            return True
    return False


def _root() -> Path:
    root = Path(tempfile.gettempdir()) / f"zhlm-cache-{os.getuid()}"
    root.mkdir(parents=True, exist_ok=True)
    return root


def _last_used_s(folder: Path) -> float | None:
    """None for what is no copy."""
    with suppress(OSError):
        if folder.is_dir() and not folder.name.startswith("."):
            return folder.stat().st_mtime
    return None


def _bytes_of(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


@contextmanager
def _all_locked(kind: int) -> Iterator[None]:
    """Shared by those who begin to use a copy, alone for who deletes one."""
    lock = _open_locked(_root() / ".lock", kind)
    try:
        yield
    finally:
        os.close(lock)


def _hold(folder: Path) -> int:
    return _open_locked(folder / _HELD, fcntl.LOCK_SH)


def _is_held(folder: Path) -> bool:
    try:
        os.close(_open_locked(folder / _HELD, fcntl.LOCK_EX | fcntl.LOCK_NB))
    except BlockingIOError:
        return True
    return False


def _open_locked(path: Path, kind: int) -> int:
    """A file descriptor; where the temporary folder has no locks, the age of a copy alone protects it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        pass
    return descriptor
