"""The run folder: where things are, what is finished, on a local path or an object store.

A stage writes its output into its own folder and the manifest comes last, by atomic rename: a folder without a manifest is unfinished and
only its own stage looks into it.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from zhlm.cache import cached_copy, scratch, watched
from zhlm.config.schema import RunConfig
from zhlm.config.stages import Stage
from zhlm.errors import RunError, StorageError

SAMPLE_SCHEME = "sample://"
MANIFEST = "manifest.json"
STARTED = "started.json"
"""Written into a stage's folder before its work, so that a later run knows whose unfinished output lies there."""
TRACKER_IDS = "trackers.json"
"""Beside the checkpoints, so that a training that begins anew is another run to the trackers, and one that goes on is the same."""
BLOCK_STORE = "_blocks"
"""No run can have this name."""


RETRY_S = 90.0
"""How long a remote storage that does not answer is asked again."""
RETRY_PAUSE_S = 1.0
"""Before the second try; doubled each time, up to RETRY_PAUSE_MOST_S."""
RETRY_PAUSE_MOST_S = 10.0
UPLOAD_BYTES = 64 << 20
"""Of a file on its way to an object store, so much is under way at a time."""

_PASSING = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT|UNKNOWN \(HTTP status 5)"
    r"|HTTP status (408|429|5\d\d)|curlCode|timed out|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]onnection (refused|reset)"
)
"""How Arrow words what may be over in a minute."""
_PASSING_NUMBERS = {errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ENETUNREACH}

T = TypeVar("T")


def digest(data: Any) -> str:
    """A short stable hash of plain data (dicts in any key order)."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file:///")


@contextmanager
def storage_errors(doing: str, where: object) -> Iterator[None]:
    """Turns an OSError into the one line that the user needs."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else (error.strerror or str(error).splitlines()[0])
        remedy = "free some space or set storage.root to another disk" if full else "check storage.root and its permissions"
        raise StorageError(f"storage: {doing} {where} failed: {reason}; {remedy}", path=str(where)) from error


_told: ContextVar[Callable[[str], None]] = ContextVar("_told", default=lambda _: None)


@contextmanager
def tells_waits(tell: Callable[[str], None]) -> Iterator[None]:
    """Inside, and in this thread, `tell` hears of each wait for a storage that does not answer."""
    token = _told.set(tell)
    try:
        yield
    finally:
        _told.reset(token)


def retrying(where: object, action: Callable[[], T]) -> T:
    """The result of an action on a storage; where it is remote and does not answer, the action is tried again for RETRY_S seconds. They
    count from its first failure: a long transfer that was cut off is worth another one.

    Raises: OSError at once when waiting would not help (not found, no permission, wrong address); after that time with how long it took.
    """
    if not is_remote(str(where)):
        return action()
    failing_since_s: float | None = None
    pause_s = RETRY_PAUSE_S
    while True:
        try:
            return action()
        except OSError as error:
            passing = error.errno in _PASSING_NUMBERS or (error.errno is None and _PASSING.search(str(error)))
            if not passing:
                raise
            failing_since_s = time.monotonic() if failing_since_s is None else failing_since_s
            tried_s = time.monotonic() - failing_since_s
            if tried_s + pause_s > RETRY_S:
                reason = error.strerror or str(error).strip().splitlines()[0]
                raise OSError(errno.ETIMEDOUT, f"{reason} (tried for {tried_s:.0f} s)") from error
            _told.get()(f"storage: {error.strerror or str(error).strip().splitlines()[0]}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, RETRY_PAUSE_MOST_S)


class Place:
    """A file or folder, local or remote; `/` descends."""

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri).removeprefix("file://")
        self.remote = is_remote(self.uri)

    def __truediv__(self, name: str) -> "Place":
        return Place(f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def path(self) -> Path:
        """The local path. Only for places that are local; `on_disk` serves both kinds."""
        assert not self.remote, f"{self.uri} has no local path"
        return Path(self.uri)

    def _open(self) -> tuple[pafs.FileSystem, str]:
        if self.remote:
            try:
                filesystem, path = retrying(self, lambda: pafs.FileSystem.from_uri(self.uri))
            except pa.ArrowInvalid as error:
                raise StorageError(
                    f"storage: {self} cannot be used ({error}); name a local folder, s3://bucket/folder or gs://..."
                ) from error
            return filesystem, str(path)
        return pafs.LocalFileSystem(), str(Path(self.uri).absolute())

    def exists(self) -> bool:
        with storage_errors("looking for", self):
            filesystem, path = self._open()
            return bool(retrying(self, lambda: filesystem.get_file_info(path)).type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the children, sorted; empty when the folder does not exist."""
        return sorted(info.base_name for info in self.infos())

    def infos(self) -> list[pafs.FileInfo]:
        """The children with size and time; none when the folder does not exist."""
        with storage_errors("listing", self):
            filesystem, path = self._open()
            infos: list[pafs.FileInfo] = retrying(self, lambda: filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)))
            return infos

    def read_text(self) -> str:
        with storage_errors("reading", self):
            filesystem, path = self._open()
            return retrying(self, lambda: _read(filesystem, path)).decode("utf-8")

    def write_text(self, text: str) -> None:
        """Write a whole file so that a reader sees the old content or the new, never a part."""
        self.write_bytes(text.encode("utf-8"))

    def write_bytes(self, data: bytes) -> None:
        """As `write_text`."""
        with storage_errors("writing", self):
            if self.remote:
                filesystem, path = self._open()
                retrying(self, lambda: _write(filesystem, path, data))
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(f".{self.name}.{uuid.uuid4().hex[:8]}")
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)

    def adopt(self, file: Path, beat: Callable[[], None] = lambda: None) -> None:
        """Give this place to a finished local file, from the same folder or for an upload: all of it, and on the disk when this returns.
        `beat` is called for every UPLOAD_BYTES that have arrived."""
        with storage_errors("writing", self):
            if self.remote:
                filesystem, path = self._open()
                retrying(self, lambda: _upload(file, filesystem, path, beat))
                return
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
            os.replace(file, self.path)

    def delete(self) -> None:
        """Remove the file or folder; nothing happens when there is none."""
        with storage_errors("deleting", self):
            filesystem, path = self._open()
            kind = filesystem.get_file_info(path).type
            if kind == pafs.FileType.Directory:
                filesystem.delete_dir(path)
            elif kind == pafs.FileType.File:
                filesystem.delete_file(path)

    def on_disk(self, beat: Callable[[], None] | None = None) -> Path:
        """A local path with this content: the place itself, or a copy made once per machine and content listing (see cache.py).
        `beat` is called again and again while the copy of a folder grows."""
        if not self.remote:
            return self.path
        with storage_errors("fetching", self):
            filesystem, path = self._open()
            infos = retrying(self, lambda: _files(filesystem, path))
            stamp = digest([self.uri, sorted((i.path, i.size, str(i.mtime)) for i in infos)])
            local = pafs.LocalFileSystem()

            def fetch(to: Path) -> None:
                with watched(to, beat):
                    retrying(self, lambda: _copy(filesystem, path, local, str(to)))

            return cached_copy(stamp, self.name, fetch)

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A fresh local folder to fill; when the block ends well it becomes this place, replacing what was there.

        Local: one rename. Remote: files are copied one by one, so readers must wait for what is written after them (the manifest).
        """
        with ExitStack() as until_done:
            with storage_errors("preparing", self):
                work = until_done.enter_context(scratch() if self.remote else _beside(self.path))
            yield work
            with storage_errors("writing", self):
                self.delete()
                if self.remote:
                    filesystem, path = self._open()
                    _copy(pafs.LocalFileSystem(), str(work), filesystem, path)
                else:
                    os.rename(work, self.path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A hidden folder on the same disk, so that a rename suffices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_by_a_killed_process in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    work.chmod(0o755)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def _write(filesystem: pafs.FileSystem, path: str, data: bytes) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


def _upload(file: Path, filesystem: pafs.FileSystem, path: str, beat: Callable[[], None]) -> None:
    with open(file, "rb") as source, filesystem.open_output_stream(path, compression=None) as stream:
        while piece := source.read(UPLOAD_BYTES):
            stream.write(piece)
            stream.flush()  # or a stream to S3 would take the whole file at once, and only its end be seen
            beat()


def _files(filesystem: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    """The files of a folder, at any depth, or the file itself."""
    infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return [i for i in infos if i.type == pafs.FileType.File] or [filesystem.get_file_info(path)]


def _copy(source: pafs.FileSystem, source_path: str, target: pafs.FileSystem, target_path: str) -> None:
    if source.get_file_info(source_path).type == pafs.FileType.Directory:
        target.create_dir(target_path, recursive=True)  # copy_files makes only the folders below
    pafs.copy_files(source_path, target_path, source_filesystem=source, destination_filesystem=target)


@dataclass(frozen=True)
class Run:
    """The places of one run."""

    folder: Place

    @staticmethod
    def of(config: RunConfig) -> "Run":
        return Run(Place(resolve_root(config.storage.root)) / config.name)

    @property
    def config(self) -> Place:
        return self.folder / "config.yaml"

    @property
    def here(self) -> Path:
        """What a run keeps on this machine, its log and its lock, even when itself it is in an object store."""
        return Path.home() / "zhlm" / self.folder.name if self.folder.remote else self.folder.path

    @property
    def sample(self) -> Place:
        return self.folder / "sample"

    @property
    def vocab(self) -> Place:
        return self.folder / "vocab"

    @property
    def blocks(self) -> Place:
        return self.folder / "blocks"

    @property
    def store(self) -> Place:
        """The data files of blocks, shared by all runs of the same root."""
        return Place(self.folder.uri.rstrip("/").rsplit("/", 1)[0]) / BLOCK_STORE

    @property
    def checkpoints(self) -> Place:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Place:
        return self.folder / "metrics.jsonl"

    @property
    def export(self) -> Place:
        return self.folder / "export"

    @property
    def evaluate(self) -> Place:
        return self.folder / "evaluate"

    def of_stage(self, stage: Stage) -> Place:
        """The folder a stage fills, and whose manifest says that it is whole."""
        folders = {"pack": "blocks", "train": "checkpoints"}
        return self.folder / folders.get(stage, stage)

    def resolve(self, uri: str) -> str:
        """A path of the config: sample://x is x in the sample stage's folder, anything else stands for itself."""
        return str(self.sample / uri.removeprefix(SAMPLE_SCHEME)) if uri.startswith(SAMPLE_SCHEME) else uri

    def base_model(self, config: RunConfig) -> str:
        """Hub name or local folder of the model before training: the extended one where there is one."""
        if config.vocab is not None:
            return str(self.vocab.on_disk())
        return self.original_model(config)

    def original_model(self, config: RunConfig) -> str:
        """Hub name or local folder of the base as the user named it."""
        source = self.resolve(config.base.model)
        return str(Place(source).on_disk()) if config.base.model.startswith(SAMPLE_SCHEME) or is_remote(source) else source

    def manifest(self, stage: Stage) -> dict[str, Any]:
        """The manifest of a finished stage. Raises: RunError when it is not finished."""
        place = self.of_stage(stage) / MANIFEST
        if not place.exists():
            raise RunError(f"{stage}: {self.folder} has no finished {stage} stage; run `python -m ray_jobs.{stage}` or the pipeline first")
        manifest: dict[str, Any] = json.loads(place.read_text())
        return manifest


def resolve_root(root: str) -> str:
    """Where `storage.root` is. A relative one starts at the current folder; inside a Ray job, whose working directory Ray deletes, at
    ZHLM_HOME or ~/zhlm."""
    root = Place(root).uri
    if is_remote(root) or Path(root).is_absolute():
        return root
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    start = Path(os.environ.get("ZHLM_HOME", Path.home() / "zhlm")) if in_job else Path.cwd()
    return str(start / root)
