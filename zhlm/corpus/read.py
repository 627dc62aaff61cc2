"""A piece of a corpus -> batches of documents, streaming: memory is bounded by a batch and the longest document, not by the file.

JSONL is read by msgspec, several times as fast as `json` and as strict where it matters: a chunk of lines that it refuses is read by `json`
line by line, which also words the errors. The two differ in nothing but this: msgspec does not mind other fields' numbers of more than 4300
digits, and takes deeper nesting.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import msgspec
import pyarrow as pa

from zhlm.corpus.files import SourceFile
from zhlm.corpus.lines import CHUNK_BYTES, Chunk, chunks, fail, line_of, read_whole
from zhlm.corpus.parts import Piece, whole
from zhlm.corpus.tables import Skip, Texts, columns_of, read_arrow, read_hub, read_parquet
from zhlm.records import Document

USUAL_FIELDS = ("text", "completion", "content")
"""Looked for in this order where a stream names no field."""
BATCH_CHARACTERS = 2_000_000
"""A batch ends at this size too, so that a few huge documents do not pile up."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_BOM = "\ufeff".encode()


@dataclass(frozen=True)
class Batch:
    """Some documents in a row."""

    texts: list[str]
    rows: Sequence[int]
    """Line or row number of each, from 1."""
    path: str
    """Where the rows are counted: a file, or a file from some place on, as "a.jsonl from byte 33554432", to be read by people."""


SkipIn = Callable[[str, int, Any], None]
"""Told of each row that is left out because it holds no text: `path` and row as in a Batch, and what it holds."""


def quietly(path: str, row: int, value: Any) -> None:
    """Rows without text are left out uncounted: elsewhere they are counted."""


def read_documents(
    file: SourceFile, field: str | None = None, batch_documents: int = 4096, skip_non_text: bool = False
) -> Iterator[list[Document]]:
    """The documents of a file in order, in batches; the rest is as in `read_piece`."""
    for batch in read_piece(whole(file), field, batch_documents, quietly if skip_non_text else None):
        yield [Document(text, file.path, row) for text, row in zip(batch.texts, batch.rows, strict=True)]


def read_piece(piece: Piece, field: str | None = None, batch_documents: int = 4096, skip: SkipIn | None = None) -> Iterator[Batch]:
    """The documents of a piece in order, in batches of up to `batch_documents` and about BATCH_CHARACTERS.

    A text file has one document per line. Blank lines of text and JSONL are passed over but counted in line numbers.
    With `skip`, a line or row whose field is no text, or missing, is no error: `skip` is told of it.

    Raises: CorpusError that names file and line (or row): bytes that are not UTF-8, a cut or damaged file, a broken line, no such field.
    """
    if piece.file.format not in ("text", "whole"):
        field = text_field(piece.file, field)
    readers: dict[str, Callable[[Piece, str, Skip | None], Texts]] = {
        "text": _read_text, "whole": _read_whole, "jsonl": _read_jsonl, "parquet": read_parquet, "arrow": read_arrow, "hub": read_hub,
    }  # fmt: skip
    origin = _origin(piece)
    for texts, rows in readers[piece.file.format](piece, field or "", skip and partial(skip, origin)):
        for start, stop in _cuts(texts, batch_documents):
            batch = Batch(texts[start:stop], rows[start:stop], origin)
            if stop == len(texts):
                del texts  # a huge document must not stay here while the batch is worked on
            yield batch
            del batch


def text_field(file: SourceFile, field: str | None) -> str:
    """The field that holds the texts of a JSONL file or a table: the named one, or the first of the usual ones, by the file's first record.

    Raises: CorpusError when there is none of them.
    """
    if field is not None or file.format in ("text", "whole"):
        return field or ""
    return _field_of_lines(file) if file.format == "jsonl" else _usual_field(file, columns_of(file))


def _origin(piece: Piece) -> str:
    units = {"text": "byte", "jsonl": "byte", "arrow": "record batch", "hub": "shard"}
    if piece.start == 0 or piece.file.format not in units:
        return piece.file.path
    return f"{piece.file.path} from {units[piece.file.format]} {piece.start}"


def _cuts(texts: Sequence[str], batch_documents: int) -> Iterator[tuple[int, int]]:
    """Where a list of texts is cut into batches."""
    if len(texts) <= batch_documents and sum(map(len, texts)) <= BATCH_CHARACTERS:
        return iter([(0, len(texts))] if texts else [])
    cuts, start, before = [], 0, 0
    for at, characters in enumerate(accumulate(map(len, texts)), 1):
        if at - start == batch_documents or characters - before >= BATCH_CHARACTERS or at == len(texts):
            cuts.append((start, at))
            start, before = at, characters
    return iter(cuts)


def _read_text(piece: Piece, field: str, skip: Skip | None) -> Texts:
    for chunk in chunks(piece):
        yield _split(piece, chunk)


def _split(piece: Piece, chunk: Chunk) -> tuple[list[str], Sequence[int]]:
    """The lines of a chunk that are not blank."""
    try:
        with memoryview(chunk.data) as data:
            texts = str(data[:-1] if chunk.data.endswith(b"\n") else data, "utf-8").split("\n")
    except UnicodeDecodeError:
        for _ in _lines(piece, chunk):  # one of them is the culprit
            pass
        raise
    chunk.data.clear()
    if chunk.first_line == 1 and piece.start == 0:
        texts[0] = texts[0].removeprefix("\ufeff")
    texts = [text.rstrip("\r") for text in texts]
    rows = range(chunk.first_line, chunk.first_line + len(texts))
    if all(texts) and not any(map(str.isspace, texts)):
        return texts, rows
    kept = [at for at, text in enumerate(texts) if text and not text.isspace()]
    return [texts[at] for at in kept], [rows[at] for at in kept]


def _read_whole(piece: Piece, field: str, skip: Skip | None) -> Texts:
    data = read_whole(piece.file)
    start = len(_BOM) if data.startswith(_BOM) else 0
    try:
        with memoryview(data) as view:
            texts = [str(view[start:], "utf-8")]
    except UnicodeDecodeError as error:
        byte, offset = error.object[error.start], error.start + start
        fail(piece.file, f"byte 0x{byte:02x} at offset {offset} of the file is not UTF-8; convert the file to UTF-8", cause=error)
    data.clear()
    if texts[0] and not texts[0].isspace():
        yield texts, [1]


def _read_jsonl(piece: Piece, field: str, skip: Skip | None) -> Texts:
    record = msgspec.defstruct("Record", [("text", str, msgspec.field(name=field))], gc=False)
    decoder = msgspec.json.Decoder(record)
    for chunk in chunks(piece):
        if len(chunk.data) <= 2 * CHUNK_BYTES:
            read = _decode(chunk.data, decoder)
            if read is not None:
                yield read, range(chunk.first_line, chunk.first_line + len(read))
                continue
        yield _by_json(piece, chunk, field, skip)


def _by_json(piece: Piece, chunk: Chunk, field: str, skip: Skip | None) -> tuple[list[str], Sequence[int]]:
    texts, rows = [], []
    for number, line in _lines(piece, chunk):
        record = _parse(piece, line, number)
        if skip is not None and not isinstance(record.get(field), str):
            skip(number, record.get(field))
            continue
        texts.append(_text_of(piece, record, field, number))
        rows.append(number)
    return texts, rows


def _decode(data: bytearray, decoder: Any) -> list[str] | None:
    """The texts of a chunk, one of each line; None where a line is blank, or not as it should be."""
    lines = bytes(data).split(b"\n")
    if not lines[-1]:
        lines.pop()
    if not _is_utf8(data):
        return None
    decode = decoder.decode
    try:
        return [decode(line).text for line in lines]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _is_utf8(data: bytearray) -> bool:
    """msgspec does not look at the bytes of the fields that it passes over."""
    offsets = pa.py_buffer(b"\0\0\0\0" + len(data).to_bytes(4, "little"))
    try:
        pa.StringArray.from_buffers(1, offsets, pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _lines(piece: Piece, chunk: Chunk) -> Iterator[tuple[int, str]]:
    """Lines of a chunk that are not blank, with their number in the piece from 1 and without their end."""
    lines: Iterable[bytes | bytearray] = io.BytesIO(chunk.data) if len(chunk.data) <= 2 * CHUNK_BYTES else [chunk.data]
    for number, line in enumerate(lines, chunk.first_line):
        try:
            text = str(line, "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            what = f"byte 0x{byte:02x} at offset {error.start} of the line is not UTF-8; convert the file to UTF-8"
            fail(piece.file, what, line_of(piece, number), error)
        if isinstance(line, bytearray):
            line.clear()
        text = text.removeprefix("\ufeff") if number == 1 and piece.start == 0 else text
        if text and not text.isspace():
            yield number, text


def _parse(piece: Piece, line: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        problem = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        what = f"not valid JSON{column} ({problem}): {line[:40]!r}; expected one object per line; repair or remove the line"
        fail(piece.file, what, line_of(piece, number), error)
    if not isinstance(record, dict):
        what = f'{line[:40]!r} is {_kind(record)}, expected one object per line such as {{"text": "..."}}; convert the file'
        fail(piece.file, what, line_of(piece, number))
    return record


def _text_of(piece: Piece, record: dict[str, Any], field: str, number: int) -> str:
    text = record.get(field)
    if isinstance(text, str):
        # A lone half of a surrogate pair cannot be encoded again.
        return _LONE_SURROGATE.sub("\ufffd", text) if not text.isascii() and _LONE_SURROGATE.search(text) else text
    if field not in record:
        names = ", ".join(sorted(record)) or "none"
        what = f"no field {field!r}; the line has: {names}; set the stream's `field` or repair the line"
        fail(piece.file, what, line_of(piece, number))
    what = f"field {field!r} is {_kind(text)}, expected a string; set the stream's `field` or `skip_non_text: true`, or repair the line"
    fail(piece.file, what, line_of(piece, number))


def _field_of_lines(file: SourceFile) -> str:
    piece = whole(file)
    for chunk in chunks(piece):
        for number, line in _lines(piece, chunk):
            return _usual_field(file, list(_parse(piece, line, number)), number)
    return USUAL_FIELDS[0]  # nothing but blank lines


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number", str: "a string"}
    return "null" if value is None else names[type(value)]


def _usual_field(file: SourceFile, names: list[str], line: int | None = None) -> str:
    field = next((f for f in USUAL_FIELDS if f in names), None)
    if field is None:
        usual, there = ", ".join(USUAL_FIELDS), ", ".join(names) or "none"
        fail(file, f"none of the usual fields {usual}; there are: {there}; set the stream's `field` to the one that holds the text", line)
    return field
