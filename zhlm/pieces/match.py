"""Two tokenizers side by side: which tokens of one are the same text as a token of the other, and how the other spells the rest.

Kinds write the same text in different ways: ` the` is one symbol string of byte-level BPE, U+2581 and `the` in SentencePiece, and `the` in
WordPiece, whose `##the` is the text without a space in front.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from zhlm.errors import BaseModelError
from zhlm.pieces.base import CJK, types_in
from zhlm.pieces.bytelevel import BYTE_OF
from zhlm.pieces.kinds import take_apart
from zhlm.tokenizer.load import tokenizer_json, vocabulary_of
from zhlm.tokenizer.special import RESERVED, document_token

SPACE = "\u2581"
BYTE = re.compile("<0x([0-9A-F]{2})>")
NO_SPACES = re.compile(f"[{CJK}]")
NAMED = ("pad_token_id", "mask_token_id", "unk_token_id")


@dataclass(frozen=True)
class Match:
    """A new tokenizer by the old one's ids."""

    same: Mapping[int, int]
    """New id -> old id of the same text, a space in front or its lack aside where there is no nearer one."""
    spelled: Mapping[int, list[int]]
    """All other new ids -> the old ids that spell their text; none where the old tokenizer cannot."""
    moved: int
    """Old tokens that are gone or have another id."""
    behind: bool
    """Whether the new tokens' ids are those that follow the old ones."""

    @property
    def old_rows_stay(self) -> bool:
        """Whether the new rows are behind the old ones, which are as they were."""
        return self.behind and not self.moved


def match(before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast, rows: int) -> Match:
    """`rows`: of the old embedding; old ids from there on have nothing to give."""
    old, new, old_ids, new_ids = _Texts.of(before), _Texts.of(after), before.get_vocab(), after.get_vocab()
    known: dict[bytes, int] = {}
    # The pieces of bytes last: <0x41> is the same text as A.
    for piece, row in sorted(old_ids.items(), key=lambda item: (RESERVED.fullmatch(item[0]) is not None, item[1])):
        if row < rows and piece not in old.special:
            known.setdefault(next(old.forms(piece)), row)
    spell, roles = _speller(before), _by_role(before, after)
    same, spelled = dict[int, int](), dict[int, list[int]]()
    for piece, row in new_ids.items():
        special = piece in new.special
        found = old_ids.get(piece) if special or old.kind == new.kind else None
        if found is None and not special:
            found = next((known[form] for form in new.forms(piece) if form in known), None)
        if found is not None and found < rows:
            same[row] = found
        elif special or (new.kind != "ByteLevel" and RESERVED.fullmatch(piece)):
            spelled[row] = [i for i in roles.get(row, []) if i < rows]
        else:
            spelled[row] = [i for i in spell(next(new.forms(piece)), known) if i < rows]
    extra, first = sorted({*new_ids.values()} - {*old_ids.values()}), vocabulary_of(before)
    moved = sum(new_ids.get(piece) != row for piece, row in old_ids.items())
    return Match(same, spelled, moved, extra == list(range(first, first + len(extra))))


@dataclass(frozen=True)
class _Texts:
    """How a tokenizer writes text in its pieces."""

    kind: str
    prefix: str
    special: frozenset[str]
    added: frozenset[str]
    """Tokens that are their text as it is."""

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerFast) -> "_Texts":
        spec: dict[str, Any] = json.loads(tokenizer_json(tokenizer))
        types = types_in(spec.get("pre_tokenizer")) | types_in(spec.get("decoder"))
        kind = "WordPiece" if spec["model"].get("type") == "WordPiece" else "ByteLevel" if "ByteLevel" in types else "SentencePiece"
        tokens = tokenizer.added_tokens_decoder.values()
        special = frozenset(token.content for token in tokens if token.special)
        prefix = spec["model"].get("continuing_subword_prefix") or "##"
        return _Texts(kind, prefix, special, frozenset(token.content for token in tokens if not token.special))

    def forms(self, piece: str) -> Iterator[bytes]:
        """A piece's text, then the same with a space in front, or without it."""
        text = self._text(piece)
        yield text
        yield text[1:] if text.startswith(b" ") else b" " + text

    def _text(self, piece: str) -> bytes:
        if piece in self.added:
            return piece.encode()
        if self.kind == "ByteLevel":
            return bytes(BYTE_OF[symbol] for symbol in piece) if all(symbol in BYTE_OF for symbol in piece) else piece.encode()
        if self.kind == "SentencePiece":
            byte = BYTE.fullmatch(piece)
            return bytes.fromhex(byte[1]) if byte else piece.replace(SPACE, " ").encode()
        if piece.startswith(self.prefix) and piece != self.prefix:
            return piece.removeprefix(self.prefix).encode()
        begins_a_word = piece[:1].isalnum() and not NO_SPACES.match(piece)
        return f" {piece}".encode() if begins_a_word else piece.encode()


def _by_role(before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast) -> dict[int, list[int]]:
    """New ids of special tokens -> old id of the one for the same purpose."""
    ends = [(document_token(before, wanted), document_token(after, wanted)) for wanted in ("bos", "eos")]
    found = {new.id: [old.id] for old, new in ends if old and new}
    of_ends = {old.id for old, _ in ends if old}
    for name in NAMED:  # GPT-2's unknown token, for one, is what ends a text
        old_id, new_id = getattr(before, name), getattr(after, name)
        if old_id is not None and new_id is not None and old_id not in of_ends:
            found.setdefault(new_id, [old_id])
    return found


def _speller(before: PreTrainedTokenizerFast) -> Callable[[bytes, Mapping[bytes, int]], list[int]]:
    """What gives the old ids of a text, or of a part of a character by its bytes, unknown ones left out."""
    backend, unknown = before.backend_tokenizer, before.unk_token_id
    try:
        spelled = take_apart(backend).spelled
    except BaseModelError:  # Unigram

        def spelled(word: str) -> list[int]:
            return list(backend.encode(word, add_special_tokens=False).ids)

    def spell(text: bytes, known: Mapping[bytes, int]) -> list[int]:
        try:
            return [i for i in spelled(text.decode()) if i != unknown]
        except UnicodeDecodeError:
            return [known[part] for n in range(len(text)) if (part := text[n : n + 1]) in known]

    return spell
