"""A byte-level BPE tokenizer, taken apart: its pieces, its merges, how it cuts text before merging.

A byte-level piece is written in symbols: one printable character stands for each of the 256 bytes (GPT-2's alphabet). `symbols` below is
always such a string, `piece` one that is in the vocabulary.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

from zhlm.errors import BaseModelError
from zhlm.pieces.base import Base, merges_of


def _alphabet() -> list[str]:
    """Bytes that print stand for themselves; the others are numbered from U+0100 on. Source: GPT-2's byte encoder."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


ALPHABET = _alphabet()
BYTE_OF = {symbol: byte for byte, symbol in enumerate(ALPHABET)}
UTF8_BYTES = [b for b in range(256) if b not in (0xC0, 0xC1) and b < 0xF5]
"""The bytes that occur in UTF-8 at all."""
MENDED_TEXTS = 5000
"""Tried for a piece that begins or ends inside of a character."""


def to_symbols(data: bytes) -> str:
    return "".join(ALPHABET[byte] for byte in data)


def to_bytes(symbols: str) -> bytes:
    return bytes(BYTE_OF[symbol] for symbol in symbols)


def is_text(data: bytes) -> bool:
    """Whether the bytes are whole characters of UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def is_fragment(data: bytes) -> bool:
    """Whether the bytes are a proper part of a single UTF-8 character."""
    if not data or len(data) > 3 or not all(0x80 <= byte < 0xC0 for byte in data[1:]):
        return False
    lead = data[0]
    if 0x80 <= lead < 0xC0:
        return True
    length = 2 if 0xC2 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4 if 0xF0 <= lead < 0xF5 else 0
    return len(data) < length


@dataclass(frozen=True)
class ByteLevel(Base):
    """The parts of a byte-level BPE tokenizer that extending needs."""

    KIND = "byte-level BPE"
    MERGES = True

    backend: Tokenizer
    spec: dict[str, Any]
    merger: Tokenizer
    """The same merges on symbols that are already cut into pre-tokens."""

    @staticmethod
    def of(backend: Tokenizer, spec: dict[str, Any] | None = None) -> "ByteLevel":
        """Raises: BaseModelError when some byte has no symbol."""
        spec = spec or json.loads(backend.to_str())
        model = spec["model"]
        absent = [b for b in UTF8_BYTES if ALPHABET[b] not in model["vocab"]]
        if absent:
            raise BaseModelError(
                f"vocab: the tokenizer lacks {len(absent)} of the 256 byte symbols (0x{absent[0]:02x} first), so it cannot spell all text; "
                "set vocab: null, or use a tokenizer trained with the whole byte alphabet"
            )
        bpe = BPE(vocab=model["vocab"], merges=merges_of(spec), ignore_merges=bool(model.get("ignore_merges")))
        return ByteLevel(backend, spec, Tokenizer(bpe))

    def pre_tokens(self, text: str) -> list[str]:
        return self._cut(self._normal(text))

    def merge(self, batch: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.merger.encode_batch_fast(batch, add_special_tokens=False)]

    def may_be_piece(self, piece: str) -> bool:
        """Whole characters, or a part of a single one."""
        data = to_bytes(piece)
        return is_text(data) or is_fragment(data)

    def written(self, text: str) -> str:
        return to_symbols(text.encode())

    def text_of(self, piece: str) -> str | None:
        data = to_bytes(piece)
        return data.decode("utf-8") if is_text(data) else None

    def shown(self, piece: str) -> str:
        return repr(to_bytes(piece))

    def containing(self, piece: str) -> Iterable[str]:
        """Characters of which the bytes are a part, at any place in them; for other pieces of broken text, which bases have, the text
        mended at its ends."""
        data = to_bytes(piece)
        if not is_fragment(data):
            return _mended(data)
        places = [(length, offset) for length in range(len(data) + 1, 5) for offset in range(length - len(data) + 1)]
        return (text for length, offset in places for text in _around(data, length, offset))


def _around(fragment: bytes, length: int, offset: int) -> Iterable[str]:
    """All characters of `length` bytes with the fragment at `offset`: a few thousand at most, for a new piece is two bytes or more."""
    leads = {2: range(0xC2, 0xE0), 3: range(0xE0, 0xF0), 4: range(0xF0, 0xF5)}[length]
    stems = [b""]
    for place in range(length):
        inside = offset <= place < offset + len(fragment)
        options: Iterable[int] = [fragment[place - offset]] if inside else leads if place == 0 else range(0x80, 0xC0)
        stems = [stem + bytes([byte]) for stem in stems for byte in options]
    return (stem.decode("utf-8") for stem in stems if is_text(stem))


def _mended(data: bytes) -> Iterator[str]:
    """Texts in which whole characters stand around broken ones: some thousand of the ways to mend the two ends."""
    start = next((n for n, byte in enumerate(data[:3]) if not 0x80 <= byte < 0xC0), min(3, len(data)))
    end = next((n for n in range(len(data) - 1, max(start, len(data) - 3) - 1, -1) if data[n] >= 0xC0 and is_fragment(data[n:])), len(data))
    heads = _around(data[:start], max(3, start + 1), max(3, start + 1) - start) if start else [""]
    tails = _around(data[end:], 2 if data[end] < 0xE0 else 3 if data[end] < 0xF0 else 4, 0) if end < len(data) else [""]
    body = data[start:end]
    if is_text(body):
        yield from islice((head + body.decode() + tail for head in list(heads)[:64] for tail in tails), MENDED_TEXTS)
