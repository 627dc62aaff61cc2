"""Special tokens by what they are for: which begin and end a document, and how a tokenizer gets those that it lacks."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from zhlm.config.vocabulary import SpecialTokensConfig
from zhlm.errors import ConfigError, VerificationError

STAND_INS: Mapping[str, Sequence[str]] = {"bos": ("bos", "cls"), "eos": ("eos", "sep")}
"""BERT's tokenizers have no bos and no eos: [CLS] begins their texts and [SEP] ends them."""
RESERVED = re.compile(r"\[[A-Za-z_]+[0-9]*\]|<[^<>\s]+>")
"""Special tokens, places that a vocabulary keeps free ([unused7]) and pieces of bytes (<0xE4>): no text is meant to produce them."""


class DocumentToken(NamedTuple):
    role: str
    """bos, eos, cls or sep."""
    text: str
    id: int


def document_token(tokenizer: Any, wanted: str) -> DocumentToken | None:
    """The token that stands before (`wanted` is bos) or behind (eos) a document: the tokenizer's own, else its cls or sep. None where it
    has neither, or "none" is wanted."""
    for role in STAND_INS.get(wanted, ()):
        if (token_id := getattr(tokenizer, f"{role}_token_id", None)) is not None:
            return DocumentToken(role, str(getattr(tokenizer, f"{role}_token", "")), int(token_id))
    return None


def generation_ids(tokenizer: Any) -> dict[str, int | None]:
    """What a GenerationConfig names; without a token for padding, what ends a text pads too."""
    start, end = document_token(tokenizer, "bos"), document_token(tokenizer, "eos")
    pad = tokenizer.pad_token_id
    return {
        "bos_token_id": start.id if start else None,
        "eos_token_id": end.id if end else None,
        "pad_token_id": end.id if pad is None and end else pad,
    }


class Special(NamedTuple):
    """What `add_special_tokens` did to a tokenizer."""

    ids: dict[str, int]
    """Of every text that was asked for."""
    new: list[str]
    """Of them, those that the vocabulary had not, in the order of their ids."""
    marked: dict[str, int]
    """Of them, those that were no special tokens: the new ones, and places that were kept free."""

    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return {"special_tokens": self.ids, "special_rows": len(self.new)} if self.ids else {}


def add_special_tokens(tokenizer: PreTrainedTokenizerFast, config: SpecialTokensConfig) -> Special:
    """Give a tokenizer special tokens and roles, in place; new ones get the ids behind all others.

    Raises: ConfigError for a text that is an ordinary piece, VerificationError when a token gets another id.
    """
    before, texts = tokenizer.get_vocab(), config.texts
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    ordinary = next((t for t in texts if t in before and t not in special and not RESERVED.fullmatch(t)), None)
    if ordinary is not None:
        raise ConfigError(
            f"vocab: special_tokens names {ordinary!r}, which is an ordinary piece of the tokenizer, expected a text that no document has; "
            f"write <{ordinary}>, for example"
        )
    tokenizer.add_tokens([_token(text) for text in texts], special_tokens=True)
    for role, text in config.roles.items():
        setattr(tokenizer, role, _token(text))
    if sentinels := [_token(text) for text in texts if text not in config.roles.values()]:
        tokenizer.add_special_tokens({"extra_special_tokens": sentinels}, replace_extra_special_tokens=False)
    ids = {text: int(tokenizer.convert_tokens_to_ids(text)) for text in texts}
    new = [text for text in texts if text not in before]
    first_id, got = max(before.values()) + 1, [ids[text] for text in new]
    if got != list(range(first_id, first_id + len(got))):
        raise VerificationError(f"vocab: the special tokens {new[:5]} got the ids {got[:5]}, expected {first_id} and the next ones")
    return Special(ids, new, {text: row for text, row in ids.items() if text not in special})


def _token(text: str) -> AddedToken:
    return AddedToken(text, normalized=False, special=True)
