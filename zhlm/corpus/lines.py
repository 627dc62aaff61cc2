"""The lines of a piece of a text or JSONL file, as bytes, many at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from zhlm.corpus.files import SourceFile
from zhlm.corpus.open import decompressed, open_bytes, reading
from zhlm.corpus.parts import Piece
from zhlm.errors import CorpusError

CHUNK_BYTES = 1 << 20
"""Read and parsed at a time. Less means more calls for each document; more leaves the cache of the processor: msgspec alone gives 402 MB/s
at this size, 335 at 8 MiB."""


@dataclass(frozen=True)
class Chunk:
    """Whole lines in a row."""

    data: bytearray
    """A line longer than CHUNK_BYTES comes alone. The reader may clear it, to have the memory back."""
    first_line: int
    """Number of the first, from 1, counted from the start of the piece."""


def chunks(piece: Piece) -> Iterator[Chunk]:
    """The lines that start in a piece, to their ends, whatever is before and behind it in the file.

    Raises: CorpusError when the file cannot be read to there.
    """
    line = 1
    with decompressed(piece.file.path, piece.file.compression) as stream:
        stop = piece.stop if piece.file.compression == "none" else 1 << 62
        at = _first_start(stream, piece.start, stop)
        pending, unread = bytearray(), b""
        while at < stop:
            data, unread = unread or stream.read(CHUNK_BYTES), b""
            if not data:
                break
            in_long_line = len(pending) > CHUNK_BYTES
            if in_long_line:
                end = data.find(b"\n") + 1
            else:  # not beyond the line that holds the last byte of the piece
                end = data.find(b"\n", max(0, stop - 1 - at - len(pending))) + 1 or data.rfind(b"\n") + 1
            if not end:
                pending += data
                continue
            pending += memoryview(data)[:end]
            at += len(pending)
            num_lines = pending.count(b"\n")
            rest, full = data[end:], Chunk(pending, line)
            pending, unread = (bytearray(), rest) if in_long_line else (bytearray(rest), b"")
            del data, rest
            yield full
            del full
            line += num_lines
        if pending and at < stop:
            yield Chunk(pending, line)


def read_whole(file: SourceFile) -> bytearray:
    """All bytes of a file, behind its compression. Raises: CorpusError when it cannot be read to its end."""
    content = bytearray()
    with decompressed(file.path, file.compression) as stream:
        while data := stream.read(CHUNK_BYTES):
            content += data
    return content


def _first_start(stream: BinaryIO, start: int, stop: int) -> int:
    """Move to where the first line at or behind `start` begins; gives up at `stop`."""
    if start == 0:
        return 0
    at = start - 1  # a line end just before `start` counts
    stream.seek(at)
    while at < stop:
        data = stream.read(CHUNK_BYTES)
        if not data:
            return stop
        end = data.find(b"\n") + 1
        if end:
            stream.seek(at + end)
            return at + end
        at += len(data)
    return stop


def line_of(piece: Piece, line: int) -> int:
    """The number in the file of a line of the piece, both from 1. Reads what is before the piece, so it is for errors."""
    if piece.start == 0:
        return line
    before, left = 0, piece.start - 1
    with open_bytes(piece.file.path) as stream, reading(piece.file.path):
        while left > 0 and (data := stream.read(min(left, CHUNK_BYTES))):
            before += data.count(b"\n")
            left -= len(data)
    return before + 1 + line


def fail(file: SourceFile, what: str, line: int | None = None, cause: BaseException | None = None) -> NoReturn:
    """Raise the CorpusError for a place in a file."""
    unit = "line" if file.format in ("text", "jsonl") else "row"
    place = f"{file.path} {unit} {line}" if line is not None else file.path
    raise CorpusError(f"corpus: {place}: {what}", path=file.path, line=line) from cause
