"""Which kind of tokenizer a base has, and whether it can be extended."""

import json

from tokenizers import Tokenizer

from zhlm.errors import BaseModelError
from zhlm.pieces.base import Base, types_in
from zhlm.pieces.bytelevel import ByteLevel
from zhlm.pieces.sentencepiece import SentencePiece
from zhlm.pieces.wordpiece import WordPiece


def take_apart(backend: Tokenizer) -> Base:
    """A tokenizer as extending sees it.

    Raises: BaseModelError for a kind that cannot be extended, or a vocabulary that cannot spell all text.
    """
    spec = json.loads(backend.to_str())
    model = spec["model"]
    kind = str(model.get("type"))
    if kind == "WordPiece":
        return WordPiece.of(backend, spec)
    if kind != "BPE":
        raise BaseModelError(
            f"vocab: cannot extend a {kind} tokenizer, only byte-level BPE (GPT-2, BLOOM, Llama-3, Qwen), SentencePiece BPE with byte "
            "fallback (Llama-2) and WordPiece (BERT); set vocab: null",
            kind=kind,
        )
    affixes = [name for name in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if affixes:
        raise BaseModelError(f"vocab: cannot extend a BPE tokenizer that has a {affixes[0]}; set vocab: null", kind=kind)
    if "ByteLevel" in types_in(spec.get("pre_tokenizer")) and not model.get("byte_fallback"):
        return ByteLevel.of(backend, spec)
    return SentencePiece.of(backend, spec)
