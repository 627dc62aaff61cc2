"""A byte-level BPE tokenizer, taken apart: its pieces, its merges, how it cuts text before merging.

A byte-level piece is written in symbols: one printable character stands for each of the 256 bytes (GPT-2's alphabet). `symbols` below is
always such a string, `piece` one that is in the vocabulary.
"""

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

from zhlm.errors import BaseModelError


def _alphabet() -> list[str]:
    """Bytes that print stand for themselves; the others are numbered from U+0100 on. Source: GPT-2's byte encoder."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


ALPHABET = _alphabet()
BYTE_OF = {symbol: byte for byte, symbol in enumerate(ALPHABET)}
UTF8_BYTES = [b for b in range(256) if b not in (0xC0, 0xC1) and b < 0xF5]
"""The bytes that occur in UTF-8 at all."""


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
class ByteLevel:
    """The parts of a byte-level BPE tokenizer that extending needs."""

    backend: Tokenizer
    spec: dict[str, Any]
    """The tokenizer.json."""
    merger: Tokenizer
    """The same merges on symbols that are already cut into pre-tokens."""

    @staticmethod
    def of(backend: Tokenizer) -> "ByteLevel":
        """Raises: BaseModelError for any other kind of tokenizer."""
        spec = json.loads(backend.to_str())
        model = spec["model"]
        kind = str(model.get("type"))
        if kind != "BPE" or model.get("byte_fallback") or "ByteLevel" not in _types(spec.get("pre_tokenizer")):
            name = "SentencePiece BPE" if kind == "BPE" else kind
            raise BaseModelError(
                f"vocab: cannot extend a {name} tokenizer yet, only byte-level BPE (GPT-2, BLOOM, Llama-3, Qwen); set vocab: null",
                kind=name,
            )
        affixes = [a for a in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(a)]
        if affixes:
            raise BaseModelError(f"vocab: cannot extend a BPE tokenizer that has a {affixes[0]} yet; set vocab: null", kind=kind)
        absent = [b for b in UTF8_BYTES if ALPHABET[b] not in model["vocab"]]
        if absent:
            raise BaseModelError(
                f"vocab: the tokenizer lacks {len(absent)} of the 256 byte symbols (0x{absent[0]:02x} first), so it cannot spell all text; "
                "set vocab: null, or use a tokenizer trained with the whole byte alphabet"
            )
        merges = [_pair(merge) for merge in model["merges"]]
        bpe = BPE(vocab=model["vocab"], merges=merges, ignore_merges=bool(model.get("ignore_merges")))
        return ByteLevel(backend, spec, Tokenizer(bpe))

    @property
    def vocabulary(self) -> dict[str, int]:
        """Piece -> id of the BPE model; special tokens may or may not be among them."""
        vocabulary: dict[str, int] = self.spec["model"]["vocab"]
        return vocabulary

    def pre_tokens(self, text: str) -> list[str]:
        """A text as the tokenizer cuts it before any merge, in symbols."""
        normaliser = self.backend.normalizer
        normal = normaliser.normalize_str(text) if normaliser is not None else text
        return [symbols for symbols, _ in self.backend.pre_tokenizer.pre_tokenize_str(normal)]

    def merge(self, batch: list[str]) -> list[list[int]]:
        """Ids of pre-tokens given in symbols."""
        return [encoding.ids for encoding in self.merger.encode_batch_fast(batch, add_special_tokens=False)]


def _types(node: Any) -> set[str]:
    """Every `type` named in a part of a tokenizer.json."""
    if isinstance(node, dict):
        return {str(node.get("type"))}.union(*(_types(v) for v in node.values()))
    return set().union(*(_types(v) for v in node)) if isinstance(node, list) else set()


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
