"""One corpus file -> batches of documents, streaming: memory is bounded by a batch, whatever the size of the file.

Each reader yields `(row, text)` pairs and knows nothing of batches; a faster reader of one format replaces one function.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from zhlm.corpus.files import SourceFile, open_bytes, reason_of
from zhlm.errors import CorpusError
from zhlm.records import Document

USUAL_FIELDS = ("text", "completion", "content")
"""Looked for in this order where a stream names no field."""
BATCH_CHARACTERS = 2_000_000
"""A batch ends at this size too, so that a few huge documents do not pile up."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_documents(file: SourceFile, field: str | None = None, batch_documents: int = 4096) -> Iterator[list[Document]]:
    """The documents of a file in order, in batches.

    A text file has one document per line. Blank lines of text and JSONL are passed over but counted in line numbers.

    Raises: CorpusError that names file and line (or row): bytes that are not UTF-8, a cut or damaged file, a broken line, no such field.
    """
    readers = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}
    batch: list[Document] = []
    characters = 0
    for row, text in readers[file.format](file, field):
        batch.append(Document(text, file.path, row))
        characters += len(text)
        if len(batch) == batch_documents or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _fail(file: SourceFile, what: str, line: int | None = None, cause: BaseException | None = None) -> NoReturn:
    unit = "row" if file.format == "parquet" else "line"
    place = f"{file.path} {unit} {line}" if line is not None else file.path
    raise CorpusError(f"corpus: {place}: {what}", path=file.path, line=line) from cause


def _lines(file: SourceFile) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their number from 1 and without their end."""
    number = 0
    with open_bytes(file.path) as raw:
        try:
            for line in gzip.GzipFile(fileobj=raw) if file.compressed else raw:
                number += 1
                text = line.decode("utf-8").rstrip("\r\n")
                if text and not text.isspace():
                    yield number, text.removeprefix("\ufeff") if number == 1 else text
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            _fail(file, f"byte 0x{byte:02x} at offset {error.start} of the line is not UTF-8; convert the file to UTF-8", number, error)
        except EOFError as error:
            _fail(file, f"the gzip data ends too early after line {number}: the file is truncated; copy it again", cause=error)
        except (gzip.BadGzipFile, zlib.error) as error:
            _fail(
                file,
                f"damaged gzip data after line {number}: {reason_of(error)}; copy it again or rename it if it is not gzip",
                cause=error,
            )
        except OSError as error:
            _fail(file, f"reading failed after line {number}: {reason_of(error)}; check the disk or copy it again", cause=error)


def _read_text(file: SourceFile, field: str | None) -> Iterator[tuple[int, str]]:
    return _lines(file)


def _read_jsonl(file: SourceFile, field: str | None) -> Iterator[tuple[int, str]]:
    for number, line in _lines(file):
        record = _parse(file, line, number)
        if field is None:
            field = _usual_field(file, list(record), number)
        text = record.get(field)
        if not isinstance(text, str):
            _fail_field(file, record, field, number)
        # JSON can spell half a surrogate pair, which is no text: UTF-8 has no bytes for it.
        yield number, _LONE_SURROGATE.sub("\ufffd", text) if "\\u" in line else text


def _parse(file: SourceFile, line: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        problem = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        what = f"not valid JSON{column} ({problem}): {line[:40]!r}; expected one object per line; repair or remove the line"
        _fail(file, what, number, error)
    if not isinstance(record, dict):
        _fail(file, f'{line[:40]!r} is {_kind(record)}, expected one object per line such as {{"text": "..."}}; convert the file', number)
    return record


def _fail_field(file: SourceFile, record: dict[str, Any], field: str, number: int) -> NoReturn:
    if field not in record:
        names = ", ".join(sorted(record)) or "none"
        _fail(file, f"no field {field!r}; the line has: {names}; set the stream's `field` or repair the line", number)
    _fail(file, f"field {field!r} is {_kind(record[field])}, expected a string; set the stream's `field` or repair the line", number)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number", str: "a string"}
    return "null" if value is None else names[type(value)]


def _usual_field(file: SourceFile, names: list[str], line: int | None = None) -> str:
    field = next((f for f in USUAL_FIELDS if f in names), None)
    if field is None:
        usual, there = ", ".join(USUAL_FIELDS), ", ".join(names) or "none"
        _fail(file, f"none of the usual fields {usual}; there are: {there}; set the stream's `field` to the one that holds the text", line)
    return field


def _read_parquet(file: SourceFile, field: str | None) -> Iterator[tuple[int, str]]:
    row = 0
    with open_bytes(file.path) as raw:
        try:
            table = pq.ParquetFile(raw)
            field = field if field is not None else _usual_field(file, table.schema_arrow.names)
            _check_column(file, table.schema_arrow, field)
            for batch in table.iter_batches(batch_size=1024, columns=[field]):
                for text in _texts(file, batch.column(field), row):
                    row += 1
                    yield row, text
        except (pa.ArrowException, OSError) as error:
            what = f"not a readable Parquet file (row {row}): {reason_of(error)[:120]}; it is truncated or damaged, copy or write it again"
            _fail(file, what, cause=error)


def _texts(file: SourceFile, column: pa.Array, row: int) -> list[str]:
    """The values of a column whose first one is in row `row` + 1."""
    if column.null_count:
        null = column.is_null().to_pylist().index(True)
        _fail(file, "the text is null, expected a string; fill or remove the row", row + 1 + null)
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        for offset, value in enumerate(column):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                _fail(file, "the text holds bytes that are not UTF-8; write the column again as UTF-8", row + 1 + offset, error)
        raise


def _check_column(file: SourceFile, schema: pa.Schema, field: str) -> None:
    if field not in schema.names:
        _fail(file, f"no column {field!r}; there are: {', '.join(schema.names)}; set the stream's `field` to one of them")
    kind = schema.field(field).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        _fail(file, f"column {field!r} has the type {kind}, expected string; set the stream's `field` to a column of text")
