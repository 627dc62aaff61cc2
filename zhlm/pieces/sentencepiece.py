"""A SentencePiece BPE tokenizer with byte fallback, as Llama-2 has it: characters are merged, and a space is a character (U+2581).

A character that is not in the vocabulary is spelled by pieces that stand for its bytes (<0xE4> ...), which no merge joins: it has to become
a piece itself before it can be a part of one. Most such tokenizers do not cut a text at all; learning cuts where no piece reaches across.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

from zhlm.errors import BaseModelError
from zhlm.pieces.base import CJK, Base, Start, is_one_script, merges_of

SPACE = "\u2581"
CUTS = (f"{SPACE}*(?:[{CJK}]+|[^{SPACE}{CJK}]+)|{SPACE}+", f"{SPACE}*[^{SPACE}]+|{SPACE}+")
"""What stays together: a word, and in it Chinese apart from anything else; or only a word."""


@dataclass(frozen=True)
class SentencePiece(Base):
    """The parts of a SentencePiece BPE tokenizer that extending needs."""

    KIND = "SentencePiece BPE"
    MERGES = True

    backend: Tokenizer
    spec: dict[str, Any]
    merger: Tokenizer
    """The same merges on pre-tokens."""
    cut: re.Pattern[str] | None
    """What of a pre-token stays together: none of the base's merges reaches across."""
    adds_space: bool
    """Whether a space is put in front of every text."""

    @staticmethod
    def of(backend: Tokenizer, spec: dict[str, Any]) -> "SentencePiece":
        """Raises: BaseModelError when some text has no spelling."""
        absent = [byte for byte in range(256) if byte_piece(byte) not in spec["model"]["vocab"]]
        if absent or not spec["model"].get("byte_fallback"):
            what = f"{len(absent)} of the 256 byte pieces ({byte_piece(absent[0])} first)" if absent else "byte fallback"
            raise BaseModelError(
                f"vocab: the tokenizer is a BPE without {what}, so it cannot spell all text; "
                "set vocab: null, or use a tokenizer with byte fallback or byte-level BPE"
            )
        products = [left + right for left, right in merges_of(spec)]
        cuts = (re.compile(cut) for cut in CUTS)
        cut = next((cut for cut in cuts if all(cut.fullmatch(product) for product in products)), None)
        bare = SentencePiece(backend, spec, _merger(spec, {}), cut, False)
        return replace(bare, adds_space=bare.pre_tokens("a")[0].startswith(SPACE))

    def pre_tokens(self, text: str) -> list[str]:
        parts = self._cut(self._normal(text))
        return [word for part in parts for word in self.cut.findall(part)] if self.cut else parts

    def merge(self, batch: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.merger.encode_batch_fast(batch, add_special_tokens=False)]

    def start(self, pre_tokens: Collection[str]) -> Start:
        """Every character is a symbol, spelled in bytes or not; as no old merge knows the new ones, all others fall as before."""
        absent = sorted(set().union(*pre_tokens) - self.vocabulary.keys())
        first = max(self.vocabulary.values()) + 1
        loose = {char: first + order for order, char in enumerate(absent)}
        merger = _merger(self.spec, loose)
        return Start(lambda batch: [e.ids for e in merger.encode_batch_fast(batch, add_special_tokens=False)], loose)

    def loose_gain(self, piece: str) -> int:
        return len(piece.encode()) - 1

    def may_be_piece(self, piece: str) -> bool:
        """One script, with at most one space in front; or only spaces."""
        body = piece.removeprefix(SPACE)
        return not body.strip(SPACE) or (SPACE not in body and is_one_script(body))

    def written(self, text: str) -> str:
        return text.replace(" ", SPACE)

    def text_of(self, piece: str) -> str | None:
        return piece.replace(SPACE, " ")

    def alone(self, piece: str) -> str | None:
        """Without the space that the tokenizer itself puts in front."""
        text = piece.replace(SPACE, " ")
        return text.removeprefix(" ") if self.adds_space else text


def byte_piece(byte: int) -> str:
    return f"<0x{byte:02X}>"


def _merger(spec: dict[str, Any], loose: dict[str, int]) -> Tokenizer:
    model = spec["model"]
    settings = {name: model.get(name) for name in ("unk_token", "fuse_unk", "ignore_merges") if model.get(name) is not None}
    return Tokenizer(BPE(vocab=model["vocab"] | loose, merges=merges_of(spec), byte_fallback=True, **settings))
