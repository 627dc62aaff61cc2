"""Which files a corpus is: paths, globs and folders -> source files, sorted and each once."""

import fnmatch
import glob
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.fs as pafs

from zhlm.errors import CorpusError
from zhlm.storage import is_remote

Format = Literal["text", "jsonl", "parquet"]

ENDINGS: dict[str, tuple[Format, bool]] = {
    ".txt": ("text", False),
    ".txt.gz": ("text", True),
    ".jsonl": ("jsonl", False),
    ".jsonl.gz": ("jsonl", True),
    ".json": ("jsonl", False),
    ".json.gz": ("jsonl", True),
    ".parquet": ("parquet", False),
}
"""File name ending -> format, and whether gzip is around it."""
KNOWN = ".txt, .jsonl, .json, .parquet, or the text ones with .gz"

WHOLE_BYTES = 64 << 20
"""A file up to this size is hashed whole; of a larger one, PIECES pieces spread evenly, the first and the last bytes among them."""
PIECES = 64
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus."""

    path: str
    """Absolute local path, or URI of a remote file."""
    format: Format
    compressed: bool
    size_bytes: int

    @cached_property
    def fingerprint(self) -> str:
        """Of name, size and content, so it survives copying the file elsewhere. Reads the file, so a plan does not ask for it."""
        with open_bytes(self.path) as stream, _reading(self.path):
            return _fingerprint(stream, self.path.rsplit("/", 1)[-1], self.size_bytes)


def find_files(paths: Sequence[str]) -> list[SourceFile]:
    """The files behind paths, globs (`**` included) and folders (searched to the bottom), sorted by path, each once.

    In a folder, names that start with `.` or `_` and other endings are passed over; a named file or a match of a glob must be known.

    Raises: CorpusError for a missing path, a glob without match, a folder without corpus files, an empty file, another ending.
    """
    found = {path for given in paths for path in _expand(given.removeprefix("file://"))}
    return [_source_file(path) for path in sorted(found)]


def open_bytes(path: str) -> BinaryIO:
    """The raw bytes of a local or remote file, seekable.

    Raises: CorpusError when it cannot be opened.
    """
    try:
        if is_remote(path):
            filesystem, inside = pafs.FileSystem.from_uri(path)
            return io.BufferedReader(filesystem.open_input_file(inside), 1 << 20)
        return open(path, "rb", buffering=1 << 20)
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(
            f"corpus: {path} cannot be read: {reason_of(error)}; check that it exists and its permissions", path=path
        ) from error


def reason_of(error: BaseException) -> str:
    """The cause as the operating system or Arrow words it, on one line."""
    strerror = getattr(error, "strerror", None)
    return str(strerror or str(error).strip().splitlines()[0])


def _expand(given: str) -> list[str]:
    if is_remote(given):
        return _expand_remote(given)
    path = os.path.abspath(given)
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        return _require(_in_folder(path), given)
    if not glob.has_magic(given):
        raise CorpusError(f"corpus: {given} does not exist (looked for {path}); correct the path", path=path)
    matches = glob.glob(path, recursive=True)
    folders = [m for m in matches if os.path.isdir(m)] if "**" not in given else []
    files = [m for m in matches if os.path.isfile(m)] + [f for folder in folders for f in _in_folder(folder)]
    return _require_match(files, given)


def _in_folder(folder: str) -> list[str]:
    files = []
    for parent, children, names in os.walk(folder):
        children[:] = [c for c in children if not c.startswith((".", "_"))]
        files += [os.path.join(parent, n) for n in names if _is_corpus_name(n)]
    return files


def _expand_remote(given: str) -> list[str]:
    scheme, _, rest = given.partition("://")
    try:
        if glob.has_magic(rest):
            top = Path(rest[: cast(re.Match[str], re.search(r"[*?\[]", rest)).start()] + "x").parent
            pattern = re.compile(_glob_pattern(rest))
            listed = _list_remote(f"{scheme}://{top}")
            return _require_match([f"{scheme}://{f}" for f in listed if pattern.fullmatch(f)], given)
        filesystem, inside = pafs.FileSystem.from_uri(given)
        kind = filesystem.get_file_info(inside).type
        if kind == pafs.FileType.Directory:
            return _require([f"{scheme}://{f}" for f in _list_remote(given) if _is_corpus_name(f.rsplit("/", 1)[-1])], given)
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(
            f"corpus: {given} cannot be reached: {reason_of(error)}; check the address and the credentials", path=given
        ) from error
    if kind == pafs.FileType.NotFound:
        raise CorpusError(f"corpus: {given} does not exist; correct the path", path=given)
    return [given]


def _list_remote(uri: str) -> list[str]:
    filesystem, inside = pafs.FileSystem.from_uri(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(inside, recursive=True, allow_not_found=True))
    return [i.path for i in infos if i.type == pafs.FileType.File]


def _glob_pattern(path: str) -> str:
    """A glob as a regular expression in which `*` stays inside one folder and `**/` crosses them."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^\]]*\])", path)
    special = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(special.get(p) or (fnmatch.translate(p)[4:-3] if p.startswith("[") else re.escape(p)) for p in parts)


def _is_corpus_name(name: str) -> bool:
    return not name.startswith((".", "_")) and _ending(name) is not None


def _ending(name: str) -> tuple[Format, bool] | None:
    return next((kind for ending, kind in ENDINGS.items() if name.lower().endswith(ending)), None)


def _require(files: list[str], given: str) -> list[str]:
    if not files:
        raise CorpusError(f"corpus: the folder {given} holds no corpus file; expected {KNOWN}; put some there or name another", path=given)
    return files


def _require_match(files: list[str], given: str) -> list[str]:
    if not files:
        raise CorpusError(f"corpus: the glob {given} matches no file; correct the pattern or the folder", path=given)
    return files


def _source_file(path: str) -> SourceFile:
    kind = _ending(path)
    if kind is None:
        raise CorpusError(f"corpus: {path} has an ending that is not known; expected {KNOWN}; convert it or narrow the path", path=path)
    with open_bytes(path) as stream, _reading(path):
        size = stream.seek(0, os.SEEK_END)
    if size == 0:
        raise CorpusError(f"corpus: {path} is empty (0 bytes), expected documents; remove it or fill it", path=path)
    return SourceFile(path, *kind, size)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CorpusError(f"corpus: {path} cannot be read: {reason_of(error)}; check the disk or copy it again", path=path) from error


def _fingerprint(stream: BinaryIO, name: str, size: int) -> str:
    hasher = hashlib.sha256(f"{name}\n{size}\n".encode())
    if size <= WHOLE_BYTES:
        starts, length = list(range(0, size, PIECE_BYTES)), PIECE_BYTES
    else:
        starts, length = [(size - PIECE_BYTES) * i // (PIECES - 1) for i in range(PIECES)], PIECE_BYTES
    for start in starts:
        stream.seek(start)
        hasher.update(stream.read(length))
    return hasher.hexdigest()[:32]
