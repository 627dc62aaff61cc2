"""Opening the files of a corpus, local or remote, plain or compressed; everything that goes wrong is one CorpusError."""

import glob
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.fs as pafs
from xxhash import xxh3_128

from zhlm.errors import CorpusError
from zhlm.storage import is_remote, retrying

Compression = Literal["none", "gzip", "zstd"]

BUFFER_BYTES = 1 << 20
REMOTE_BUFFER_BYTES = 8 << 20
"""One request: large enough that its delay does not matter."""
WHOLE_BYTES = 64 << 20
"""A file up to this size is hashed whole; of a larger one, SAMPLES stretches spread evenly, the first and the last bytes among them."""
SAMPLES = 64
SAMPLE_BYTES = 1 << 20


def open_bytes(path: str) -> BinaryIO:
    """The raw bytes of a local or remote file, seekable; a storage that fails for a while is waited for.

    Raises: CorpusError when it cannot be opened.
    """
    try:
        if is_remote(path):
            return io.BufferedReader(_RemoteFile(path), REMOTE_BUFFER_BYTES)
        return open(path, "rb", buffering=BUFFER_BYTES)
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(
            f"corpus: {path} cannot be read: {reason_of(error)}; check that it exists and its permissions", path=path
        ) from error


class _RemoteFile(io.RawIOBase):
    """A remote file whose every read is tried again while the storage is away."""

    def __init__(self, uri: str) -> None:
        self._uri, self._at = uri, 0
        self._file = retrying(uri, lambda: _open_remote(uri))
        self._size: int = self._file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = retrying(self._uri, lambda: self._file.read_at(wanted, self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _open_remote(uri: str) -> pa.NativeFile:
    filesystem, inside = pafs.FileSystem.from_uri(uri)
    return filesystem.open_input_file(inside)


@contextmanager
def decompressed(path: str, compression: Compression) -> Iterator[BinaryIO]:
    """The content of a file as a stream, behind its compression.

    Raises: CorpusError when reading fails inside the block.
    """
    with open_bytes(path) as raw:
        try:
            if compression == "gzip":
                yield cast(BinaryIO, gzip.GzipFile(fileobj=raw))
            elif compression == "zstd":
                # Unlike others it notices truncation, and reads several frames in a row.
                yield cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))
            else:
                yield raw
        except EOFError as error:
            raise _broken(path, "the gzip data ends too early: the file is truncated; copy it again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            what = f"damaged gzip data: {reason_of(error)}; copy it again or rename it if it is not gzip"
            raise _broken(path, what) from error
        except OSError as error:
            if compression != "zstd" or error.errno is not None:
                raise _broken(path, f"reading failed: {reason_of(error)}; check the disk or copy it again") from error
            if "Truncated" in str(error):
                raise _broken(path, "the zstd data ends too early: the file is truncated; copy it again") from error
            raise _broken(path, f"damaged zstd data: {reason_of(error)}; copy it again or rename it if it is not zstd") from error


def _broken(path: str, what: str) -> CorpusError:
    return CorpusError(f"corpus: {path}: {what}", path=path)


def reason_of(error: BaseException) -> str:
    """The cause as the operating system or Arrow words it, on one line."""
    strerror = getattr(error, "strerror", None)
    return str(strerror or (str(error).strip().splitlines() or [type(error).__name__])[0])


def size_of(path: str) -> int:
    """Bytes on the disk. Raises: CorpusError."""
    with open_bytes(path) as stream, reading(path):
        return stream.seek(0, os.SEEK_END)


def content_hash(path: str, salt: str) -> str:
    """A hash of `salt` and of what is in a file, whatever its name: of all of it, or of a sample spread over a large one."""
    if not is_remote(path):
        return _content_hash(path, salt, stamp_of(path))
    with reading(path):
        filesystem, inside = pafs.FileSystem.from_uri(path)
        info = retrying(path, lambda: filesystem.get_file_info(inside))
    known = info.size is not None and info.mtime_ns is not None
    return _content_hash(path, salt, (info.size, info.mtime_ns)) if known else _content_hash.__wrapped__(path, salt, ())


def stamp_of(path: str) -> tuple[int, ...]:
    """What changes when a local file does: size, time of the last change, and which file it is. Raises: CorpusError."""
    with reading(path):
        now = os.stat(path)
    return now.st_size, now.st_mtime_ns, now.st_ino


@lru_cache(maxsize=1 << 20)
def _content_hash(path: str, salt: str, stamp: tuple[int, ...]) -> str:
    """Asked for by several stages of a run: a file that stays what it is, is read once."""
    with open_bytes(path) as stream, reading(path):
        size = stream.seek(0, os.SEEK_END)
        hasher = xxh3_128(f"{salt}\n{size}\n".encode())  # 6 times as fast as SHA-256, which took a tenth of the time of packing
        starts = list(range(0, size, SAMPLE_BYTES))
        if size > WHOLE_BYTES:
            starts = [(size - SAMPLE_BYTES) * i // (SAMPLES - 1) for i in range(SAMPLES)]
        for start in starts:
            stream.seek(start)
            hasher.update(stream.read(SAMPLE_BYTES))
        return hasher.hexdigest()


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Names the file when reading it fails."""
    try:
        yield
    except OSError as error:
        raise CorpusError(f"corpus: {path} cannot be read: {reason_of(error)}; check the disk or copy it again", path=path) from error


def list_remote(given: str) -> list[str] | str:
    """The URIs of all files in a remote folder or behind a remote glob; for a single file, the URI itself.

    Raises: CorpusError when it does not exist or the storage cannot be reached.
    """
    scheme, _, rest = given.partition("://")
    try:
        if glob.has_magic(rest):
            top = Path(rest[: cast(re.Match[str], re.search(r"[*?\[]", rest)).start()] + "x").parent
            pattern = re.compile(glob_pattern(rest))
            return [f"{scheme}://{f}" for f in _files_in(f"{scheme}://{top}") if pattern.fullmatch(f)]
        filesystem, inside = retrying(given, lambda: pafs.FileSystem.from_uri(given))
        kind = retrying(given, lambda: filesystem.get_file_info(inside).type)
        if kind == pafs.FileType.Directory:
            return [f"{scheme}://{f}" for f in _files_in(given)]
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(
            f"corpus: {given} cannot be reached: {reason_of(error)}; check the address and the credentials", path=given
        ) from error
    if kind == pafs.FileType.NotFound:
        raise CorpusError(f"corpus: {given} does not exist; correct the path", path=given)
    return given


def _files_in(uri: str) -> list[str]:
    filesystem, inside = retrying(uri, lambda: pafs.FileSystem.from_uri(uri))
    selector = pafs.FileSelector(inside, recursive=True, allow_not_found=True)
    return [i.path for i in retrying(uri, lambda: filesystem.get_file_info(selector)) if i.type == pafs.FileType.File]


def glob_pattern(path: str) -> str:
    """A glob as a regular expression in which `*` stays inside one folder and `**/` crosses them."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^\]]*\])", path)
    special = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    # A set of characters is written the same in both, but for its negation.
    return "".join(special.get(p) or (re.sub(r"^\[!", "[^", p) if p.startswith("[") else re.escape(p)) for p in parts)
