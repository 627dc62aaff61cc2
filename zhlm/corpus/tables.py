"""The texts of a piece of a table: Parquet, Arrow, or a shard of a dataset."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zhlm.corpus.arrow import seek_batch, skip_magic
from zhlm.corpus.files import SourceFile
from zhlm.corpus.lines import fail
from zhlm.corpus.open import open_bytes, reason_of
from zhlm.corpus.parts import Piece

READ_BYTES = 8 << 20
READ_ROWS = 4096
"""At most so much of a column is read at a time, by the mean size of a row."""

Texts = Iterator[tuple[list[str], Sequence[int]]]
"""Texts, and the row of each from 1."""
Skip = Callable[[int, Any], None]
"""Told of each row that is left out because it holds no text: its number, from 1, and what it holds."""


def columns_of(file: SourceFile) -> list[str]:
    """Names of a table's columns. Raises: CorpusError when it cannot be read."""
    if file.hub is not None:
        return file.hub.columns()
    with open_bytes(file.path) as stream, _damage(file):
        if file.format == "parquet":
            return list(pq.ParquetFile(stream).schema_arrow.names)
        skip_magic(stream)
        return list(pa.ipc.open_stream(stream).schema.names)


def read_parquet(piece: Piece, field: str, skip: Skip | None = None) -> Texts:
    """Raises: CorpusError for a damaged file, or a column that is missing, no text, or has nulls that are not to be skipped."""
    with open_bytes(piece.file.path) as stream, _damage(piece.file):
        table = pq.ParquetFile(stream)
        _check_column(piece.file, table.schema_arrow, field, skip)
        if not piece.stop:  # written without a row group
            return
        groups = [table.metadata.row_group(i) for i in range(piece.stop)]
        row = sum(g.num_rows for g in groups[: piece.start])
        num_rows, num_bytes = (sum(v) for v in zip(*((g.num_rows, g.total_byte_size) for g in groups[piece.start :]), strict=True))
        at_once = max(1, min(READ_ROWS, READ_BYTES * num_rows // max(1, num_bytes)))
        for batch in table.iter_batches(batch_size=at_once, row_groups=list(range(piece.start, piece.stop)), columns=[field]):
            yield _texts(piece.file, batch.column(0), row, skip)
            row += batch.num_rows


def read_arrow(piece: Piece, field: str, skip: Skip | None = None) -> Texts:
    """Rows are counted from the start of the piece. Raises: as `read_parquet`."""
    with open_bytes(piece.file.path) as stream, _damage(piece.file):
        skip_magic(stream)
        reader = pa.ipc.open_stream(stream)
        _check_column(piece.file, reader.schema, field, skip)
        if piece.start:
            seek_batch(stream, piece.start)
        row = 0
        for _ in range(piece.start, piece.stop):
            column = reader.read_next_batch().column(field)
            at_once = max(1, min(READ_ROWS, READ_BYTES * len(column) // max(1, column.nbytes)))
            for start in range(0, len(column), at_once):
                stretch = column.slice(start, at_once)
                yield _texts(piece.file, stretch, row, skip)
                row += len(stretch)


def read_hub(piece: Piece, field: str, skip: Skip | None = None) -> Texts:
    """Rows are counted from the start of each shard. Raises: as `read_parquet`."""
    assert piece.file.hub is not None, "the format says so"
    for shard in range(piece.start, piece.stop):
        row = 0
        for values in piece.file.hub.values(shard, field):
            rows = range(row + 1, row + 1 + len(values))
            row += len(values)
            for number, value in zip(rows, values, strict=True):
                if skip is None and not isinstance(value, str):
                    kind = type(value).__name__
                    what = f"field {field!r} is {kind}, expected a string; set the stream's `field` or `skip_non_text: true`"
                    fail(piece.file, f"shard {shard}: {what}", number)
            yield _only_texts(values, rows, skip)


@contextmanager
def _damage(file: SourceFile) -> Iterator[None]:
    """Words what Arrow says of a file that is not as it should be."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
        kind = {"arrow": "Arrow", "parquet": "Parquet"}[file.format]
        fail(file, f"not a readable {kind} file: {reason_of(error)[:120]}; it is truncated or damaged, copy or write it again", cause=error)


def _texts(file: SourceFile, column: pa.Array, row: int, skip: Skip | None) -> tuple[list[str], Sequence[int]]:
    """The values of a column whose first one is in row `row` + 1, with their rows."""
    if column.null_count and skip is None:
        null = column.is_null().to_pylist().index(True)
        fail(file, "the text is null, expected a string; fill the row or set the stream's `skip_non_text: true`", row + 1 + null)
    rows = range(row + 1, row + 1 + len(column))
    try:
        values = column.to_pylist()
        return _only_texts(values, rows, skip) if column.null_count else (values, rows)
    except UnicodeDecodeError:
        for offset, value in enumerate(column):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                fail(file, "the text holds bytes that are not UTF-8; write the column again as UTF-8", row + 1 + offset, error)
        raise


def _only_texts(values: list[Any], rows: Sequence[int], skip: Skip | None) -> tuple[list[str], Sequence[int]]:
    if skip is None or all(isinstance(value, str) for value in values):
        return values, rows
    kept = []
    for row, value in zip(rows, values, strict=True):
        if isinstance(value, str):
            kept.append((value, row))
        else:
            skip(row, value)
    return [value for value, _ in kept], [row for _, row in kept]


def _check_column(file: SourceFile, schema: pa.Schema, field: str, skip: Skip | None) -> None:
    if field not in schema.names:
        fail(file, f"no column {field!r}; there are: {', '.join(schema.names)}; set the stream's `field` to one of them")
    kind = schema.field(field).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if skip is not None and pa.types.is_null(kind):  # not one text in this file
        return
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        fail(file, f"column {field!r} has the type {kind}, expected string; set the stream's `field` to a column of text")
