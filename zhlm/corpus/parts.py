"""Source files -> parts of about the same number of bytes: what one task surveys or packs.

The parts follow from what is in the files and from nothing else, so new names, another order of listing or another number of tasks give
the same parts in the same order.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from zhlm.corpus.arrow import batch_sizes
from zhlm.corpus.files import SourceFile
from zhlm.corpus.open import open_bytes, reading, reason_of
from zhlm.errors import CorpusError


@dataclass(frozen=True)
class Piece:
    """A stretch of a source file: [start, stop) in a unit that the format decides.

    Bytes of plain text and JSONL (a line belongs to the piece in which it starts), row groups of Parquet, record batches of Arrow, shards
    of a hub dataset; bytes of the whole file for what cannot be cut.
    """

    file: SourceFile
    start: int
    stop: int


@dataclass(frozen=True)
class SourcePart:
    """Pieces that are surveyed and packed together: a stretch of one large file, or some small files."""

    pieces: tuple[Piece, ...]
    size_bytes: int
    """On the disk. 0: unknown."""

    @cached_property
    def key(self) -> str:
        """A hash of content and ranges, without names."""
        ranges = [f"{p.file.fingerprint} {p.start} {p.stop}" for p in self.pieces]
        return hashlib.sha256("\n".join(ranges).encode()).hexdigest()[:32]

    @property
    def source(self) -> str:
        """Path of the first file."""
        return self.pieces[0].file.path


def parts_of(files: Sequence[SourceFile], shard_bytes: int) -> list[SourcePart]:
    """Cut large files and put small ones together into parts of up to about `shard_bytes`, sorted by content.

    A file of more than half of that stands alone. Small files are put together by the first bits of their fingerprints, as few bits as
    it takes: one more file changes the part it falls into, and the others stay. Reads every file once, for its fingerprint.

    Raises: CorpusError when a file cannot be read.
    """
    small: list[SourceFile] = []
    parts: list[SourcePart] = []
    for file in files:
        if 2 * file.size_bytes <= shard_bytes and file.hub is None:
            small.append(file)
        else:
            parts += [SourcePart((piece,), size) for piece, size in cut(file, shard_bytes)]
    small.sort(key=lambda f: (f.fingerprint, f.path))
    for group in _groups(small, shard_bytes, 0):
        parts.append(SourcePart(tuple(whole(f) for f in group), sum(f.size_bytes for f in group)))
    return sorted(parts, key=lambda p: (p.pieces[0].file.fingerprint, p.pieces[0].start))


def whole(file: SourceFile) -> Piece:
    """All of a file in one piece."""
    if file.hub is not None:
        return Piece(file, 0, file.hub.num_shards)
    if file.format in ("parquet", "arrow"):
        return Piece(file, 0, len(_units(file)))
    return Piece(file, 0, file.size_bytes)


def cut(file: SourceFile, shard_bytes: int) -> Iterator[tuple[Piece, int]]:
    """A file in pieces of about `shard_bytes`, where its format allows, and the bytes of each."""
    if file.hub is not None:
        shards = file.hub.num_shards
        yield from ((Piece(file, i, i + 1), file.size_bytes // shards) for i in range(shards))
    elif file.format in ("parquet", "arrow"):
        yield from _cut_table(file, shard_bytes)
    elif file.format == "whole" or file.compression != "none":
        yield Piece(file, 0, file.size_bytes), file.size_bytes
    else:
        count = max(1, round(file.size_bytes / shard_bytes))  # a short rest goes with the last piece
        ends = [*(shard_bytes * i for i in range(1, count)), file.size_bytes]
        for start, stop in zip([0, *ends], ends, strict=False):
            yield Piece(file, start, stop), stop - start


def _cut_table(file: SourceFile, shard_bytes: int) -> Iterator[tuple[Piece, int]]:
    sizes = _units(file)
    start = filled = 0
    for unit, size in enumerate(sizes):
        if filled and size and filled + size > shard_bytes:
            yield Piece(file, start, unit), filled
            start, filled = unit, 0
        filled += size
    yield Piece(file, start, len(sizes)), filled


def _units(file: SourceFile) -> list[int]:
    """Bytes on the disk of each row group or record batch."""
    with open_bytes(file.path) as stream, reading(file.path):
        try:
            if file.format == "arrow":
                return batch_sizes(stream)
            metadata = pq.ParquetFile(stream).metadata
        except (pa.ArrowException, ValueError) as error:
            kind = {"arrow": "Arrow", "parquet": "Parquet"}[file.format]
            what = f"not a readable {kind} file: {reason_of(error)[:120]}; it is truncated or damaged, copy or write it again"
            raise CorpusError(f"corpus: {file.path}: {what}", path=file.path) from error
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return [sum(g.column(c).total_compressed_size for c in range(g.num_columns)) for g in groups]


def _groups(files: Sequence[SourceFile], shard_bytes: int, bits: int) -> Iterator[Sequence[SourceFile]]:
    """Files sorted by fingerprint -> runs of them that share their first `bits` bits and fit into a part."""
    if not files:
        return
    if sum(f.size_bytes for f in files) <= shard_bytes:
        yield files
    elif files[0].fingerprint == files[-1].fingerprint:  # copies of one file: no bit tells them apart
        at_once = max(1, shard_bytes // files[0].size_bytes)
        yield from (files[i : i + at_once] for i in range(0, len(files), at_once))
    else:
        ones = [bool(int(f.fingerprint, 16) >> (4 * len(f.fingerprint) - 1 - bits) & 1) for f in files]
        at = ones.index(True) if True in ones else len(files)
        yield from _groups(files[:at], shard_bytes, bits + 1)
        yield from _groups(files[at:], shard_bytes, bits + 1)
