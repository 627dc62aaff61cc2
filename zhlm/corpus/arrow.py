"""Where the record batches of an Arrow IPC file are, found without reading their bodies.

`datasets` writes the stream format, which has no index; a file of the other format (it begins with ARROW1) is a stream with an index
behind it, so both are walked in the same way.
Source: Arrow columnar format, "Encapsulated message format": 0xFFFFFFFF, the length of the metadata, a flatbuffer `Message`, the body.
"""

import struct
from typing import BinaryIO, NamedTuple

MAGIC = b"ARROW1"
SCHEMA, DICTIONARY, RECORDS = 1, 2, 3
"""Kinds of message."""


class _Message(NamedTuple):
    kind: int
    start: int
    """Offset in the file."""
    size: int
    """Of metadata and body, in bytes."""


def batch_sizes(stream: BinaryIO) -> list[int]:
    """Bytes of each record batch. Where there are dictionaries, which any batch may need, the first counts for all and the others for
    nothing, so that they stay together.

    Raises: ValueError when the file is damaged.
    """
    messages = _messages(stream)
    sizes = [m.size for m in messages if m.kind == RECORDS]
    if any(m.kind == DICTIONARY for m in messages):
        return [sum(m.size for m in messages), *(0 for _ in sizes[1:])]
    return sizes


def seek_batch(stream: BinaryIO, batch: int) -> None:
    """Move a stream, whose schema was read, to where a record batch begins."""
    stream.seek([m.start for m in _messages(stream) if m.kind == RECORDS][batch])


def skip_magic(stream: BinaryIO) -> None:
    """Move to the first message."""
    stream.seek(0)
    if stream.read(8)[:6] != MAGIC:
        stream.seek(0)


def _messages(stream: BinaryIO) -> list[_Message]:
    size = stream.seek(0, 2)
    skip_magic(stream)
    found: list[_Message] = []
    while True:
        start = stream.tell()
        prefix = stream.read(8)
        if not prefix and found:  # a writer that was not closed leaves out the end mark
            return found
        if len(prefix) < 8 or prefix[:4] != b"\xff" * 4:
            raise ValueError(f"no Arrow message at byte {start}")
        length = struct.unpack("<I", prefix[4:])[0]
        if not length:
            return found
        metadata = stream.read(length)
        try:
            kind, body = _kind_and_body(metadata)
        except struct.error as error:
            raise ValueError(f"a broken Arrow message at byte {start}") from error
        if start + 8 + length + body > size:
            raise ValueError(f"the Arrow message at byte {start} ends behind the end of the file")
        found.append(_Message(kind, start, 8 + length + body))
        stream.seek(start + 8 + length + body)


def _kind_and_body(metadata: bytes) -> tuple[int, int]:
    """Fields 1 and 3 of the flatbuffer table `Message`: what it is, and the length of its body."""
    (table,) = struct.unpack_from("<I", metadata)
    fields = table - struct.unpack_from("<i", metadata, table)[0]
    (length,) = struct.unpack_from("<H", metadata, fields)

    def place(field: int) -> int:
        at = 4 + 2 * field
        return int(struct.unpack_from("<H", metadata, fields + at)[0]) if at < length else 0

    kind = struct.unpack_from("<B", metadata, table + place(1))[0] if place(1) else 0
    body = struct.unpack_from("<q", metadata, table + place(3))[0] if place(3) else 0
    return kind, body
