"""Which files a corpus is: paths, globs and folders -> source files, sorted and each once."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from zhlm.corpus.hub import HubSplit
from zhlm.corpus.open import Compression, content_hash, list_remote, size_of, stamp_of
from zhlm.errors import CorpusError
from zhlm.storage import is_remote

Format = Literal["text", "whole", "jsonl", "parquet", "arrow", "hub"]
"""text: a document per line. whole: the file is one document. hub: a split of a dataset. The others are what their names say."""

ENDINGS: dict[str, Format] = {".txt": "text", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".arrow": "arrow"}
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
"""Around the text formats; tables compress inside."""
KNOWN = ".txt, .jsonl, .json, .parquet, .arrow, or the text ones with .gz or .zst"

SAVED_MARKS = {"state.json", "dataset_info.json"}
"""In a folder that `datasets` wrote by save_to_disk, beside data-*.arrow."""
SAVED_SPLITS_MARK = "dataset_dict.json"
"""In one that holds such a folder per split."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus, or one split of a hub dataset."""

    path: str
    """Absolute local path, URI of a remote file, or name of a dataset."""
    format: Format
    compression: Compression
    size_bytes: int
    """On the disk. 0: unknown, for datasets of the hub."""
    hub: HubSplit | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Of content and format only, so a copy or a new name changes nothing. Reads the file, so a plan does not ask for it."""
        if self.hub is not None:
            return self.hub.fingerprint()
        self.stamp  # noqa: B018 - from before its bytes are read
        return self._hash()

    @cached_property
    def stamp(self) -> tuple[int, ...] | None:
        """What tells a changed file at a glance, from when the fingerprint was taken; None for what is not local."""
        return None if self.hub is not None or is_remote(self.path) else stamp_of(self.path)

    def changed(self) -> bool:
        """Whether a local file is no longer what its fingerprint says; a new time, or a copy, with the same content is no change."""
        return self.stamp is not None and stamp_of(self.path) != self.stamp and self._hash() != self.fingerprint

    def _hash(self) -> str:
        return content_hash(self.path, f"{self.format} {self.compression}")


def find_files(paths: Sequence[str], document: Literal["line", "file"] = "line") -> list[SourceFile]:
    """The files behind paths, globs (`**` included) and folders (searched to the bottom), sorted by path, each once.

    In a folder, names that start with `.` or `_` and other endings are passed over, and of one that `datasets` saved only the data is
    taken; a named file or a match of a glob must be known. With `document` "file", a .txt file is one document.

    Raises: CorpusError for a missing path, a glob without match, a folder without corpus files or with several splits, an empty file,
        another ending.
    """
    found = {path for given in paths for path in _expand(given.removeprefix("file://"))}
    return [_source_file(path, document) for path in sorted(found)]


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


def _expand_remote(given: str) -> list[str]:
    listed = list_remote(given)
    if isinstance(listed, str):
        return [listed]
    if glob.has_magic(given):
        return _require_match(listed, given)
    return _require(_corpus_files(given, listed), given)


def _in_folder(folder: str) -> list[str]:
    files = []
    for parent, children, names in os.walk(folder):
        children[:] = [c for c in children if not c.startswith((".", "_"))]
        files += [os.path.join(parent, n) for n in names]
    return _corpus_files(folder, files)


def _corpus_files(folder: str, files: Sequence[str]) -> list[str]:
    """Those of a folder's files, at any depth, that hold documents. Raises: CorpusError where a split must be chosen."""
    names: dict[str, list[str]] = {}
    for file in files:
        parent, _, name = file.rpartition("/")
        names.setdefault(parent, []).append(name)
    chosen = []
    for parent, inside in names.items():
        _check_one_split(parent, inside, names)
        if set(inside) >= SAVED_MARKS:
            chosen += [f"{parent}/{n}" for n in inside if n.startswith("data-") and n.endswith(".arrow")]
        else:
            chosen += [f"{parent}/{n}" for n in inside if _is_corpus_name(n)]
    return chosen


def _check_one_split(parent: str, inside: Sequence[str], names: dict[str, list[str]]) -> None:
    if SAVED_SPLITS_MARK not in inside:
        return
    splits = sorted(p.rpartition("/")[2] for p, n in names.items() if p.rpartition("/")[0] == parent and set(n) >= SAVED_MARKS)
    if splits != ["train"]:
        raise CorpusError(
            f"corpus: {parent} is a dataset with the splits {', '.join(splits) or 'none'}, expected one of them; "
            f"name its folder, such as {parent}/{(['train'] if 'train' in splits else [*splits, 'train'])[0]}",
            path=parent,
        )


def _is_corpus_name(name: str) -> bool:
    return not name.startswith((".", "_")) and name != SAVED_SPLITS_MARK and _kind(name) is not None


def _kind(name: str) -> tuple[Format, Compression] | None:
    stem, ending = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(ending, "none")
    if compression != "none":
        ending = os.path.splitext(stem)[1]
    format_ = ENDINGS.get(ending)
    return None if format_ is None or (compression != "none" and format_ not in ("text", "jsonl")) else (format_, compression)


def _require(files: list[str], given: str) -> list[str]:
    if not files:
        raise CorpusError(f"corpus: the folder {given} holds no corpus file; expected {KNOWN}; put some there or name another", path=given)
    return files


def _require_match(files: list[str], given: str) -> list[str]:
    if not files:
        raise CorpusError(f"corpus: the glob {given} matches no file; correct the pattern or the folder", path=given)
    return files


def _source_file(path: str, document: Literal["line", "file"]) -> SourceFile:
    kind = _kind(path)
    if kind is None:
        raise CorpusError(f"corpus: {path} has an ending that is not known; expected {KNOWN}; convert it or narrow the path", path=path)
    size = size_of(path)
    if size == 0:
        raise CorpusError(f"corpus: {path} is empty (0 bytes), expected documents; remove it or fill it", path=path)
    format_, compression = kind
    return SourceFile(path, "whole" if (format_, document) == ("text", "file") else format_, compression, size)
