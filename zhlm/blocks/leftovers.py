"""What killed packers leave behind: hidden temporary files, beside the data files of a local store, on this machine for a remote one.

Several packers may use one store at once, from several machines over NFS, so nobody can know whose a file is. One is deleted when it was
not written to for a day and nobody has it locked: the kernel, or the NFS server, frees the lock of a writer that died.
"""

import fcntl
import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from zhlm.storage import Place, storage_errors

STALE_S = 24 * 3600.0
"""Longer than machines' clocks differ, and than one whose locks do not reach the others leaves a file alone."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
"""How `ShardWriter` and `Place.write_bytes` name what has no name yet; not `.nfs0123...`, which is an open file that was deleted."""


def temporary_folder(store: Place, key: str) -> Path:
    """Where a part's files are written before they have their names."""
    return Path(tempfile.gettempdir()) / f"zhlm-packing-{os.getuid()}" if store.remote else (store / key[:2]).path


def create_locked(path: Path) -> BinaryIO:
    """A new file to write, locked until it is closed; where the file system has no locks its age must do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "xb")  # noqa: SIM115 - the caller closes it
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def remove_leftovers(store: Place) -> tuple[int, int]:
    """Delete the temporary files that no living packer can own. Returns how many there were and their bytes."""
    with storage_errors("looking at", store):
        found = temporary_folder(store, "").glob(".*") if store.remote else store.path.glob("??/.*")
        sizes = [_remove(path) for path in found if _TEMPORARY.fullmatch(path.name)]
    return sum(size is not None for size in sizes), sum(size or 0 for size in sizes)


def _remove(path: Path) -> int | None:
    """Its bytes; None when it stays, or somebody else was first."""
    with suppress(OSError):
        about = path.stat()
        if time.time() - about.st_mtime > STALE_S and not _is_locked(path):
            path.unlink()
            return about.st_size
    return None


def _is_locked(path: Path) -> bool:
    with open(path, "rb+") as file:  # NFS locks only what may be written
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no locks here
            return False
    return False
