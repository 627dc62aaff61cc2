"""Which tokens make up a word, so that they can be masked together.

A document's tokens are spelled as the bytes that they stand for, these are cut into words, and a token belongs to the word in which it
begins, white space in front of it aside; so a token that spans words belongs to the first. Chinese is cut by jieba's dictionary. Elsewhere
a run of letters and digits is a word, and any other character is one.

Shape letters: F tokens of a block, V vocabulary.
"""

import codecs
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from tokenizers import pre_tokenizers

from zhlm.errors import ConfigError
from zhlm.text.reject import HAN
from zhlm.tokenizer.load import tokenizer_json

LONGEST_CHARS = 32
"""Of a word that is not Chinese: scripts without spaces would make a sentence one."""
_RUNS = re.compile(rf"([{HAN}]+)|([^\W{HAN}]{{1,{LONGEST_CHARS}}}|.)", re.DOTALL)
_LETTER = re.compile(rf"[^\W{HAN}]")
_BYTE = re.compile("<0x([0-9A-F]{2})>")

# A document may begin or end inside a character: as many bytes in place of it keep the places of all others.
codecs.register_error("zhlm.as_many_bytes", lambda error: ("?" * (error.end - error.start), error.end))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Words:
    """A tokenizer's pieces as bytes, and what cuts Chinese into words."""

    pieces: Sequence[bytes]
    """Of each id."""
    lengths_V: npt.NDArray[np.int64]
    spaces_V: npt.NDArray[np.int64]
    """White space in front of each piece, in bytes; none where it is all of the piece."""
    cut: Callable[[str], list[str]]

    @classmethod
    def of(cls, tokenizer: Any, rows: int) -> Self:
        """`rows`: how many ids there may be. Raises: ConfigError when rjieba is not installed."""
        pieces = spellings(tokenizer, rows)
        lengths_V = np.array([len(p) for p in pieces])
        return cls(pieces, lengths_V, np.array([len(p) - len(p.lstrip()) if p.strip() else 0 for p in pieces]), _load_segmenter())

    def begins(self, ids_F: npt.NDArray[np.int64], ends: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Whether a word begins with each token of a block's documents. Shapes: F."""
        begins_F = np.empty(len(ids_F), np.bool_)
        start = 0
        for end in ends.tolist():
            words = self._words(ids_F[start:end])
            begins_F[start] = True
            np.not_equal(words[1:], words[:-1], out=begins_F[start + 1 : end])
            start = end
        return begins_F

    def _words(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The number of each token's word, in one document."""
        data = b"".join([self.pieces[i] for i in ids.tolist()])
        lengths: list[int] = []
        for han, other in _RUNS.findall(data.decode("utf-8", "zhlm.as_many_bytes")):
            lengths += [len(word.encode()) for word in self.cut(han)] if han else [len(other.encode())]
        assert sum(lengths) == len(data), "cutting into words keeps every character"
        lengths_of_tokens = self.lengths_V[ids]
        starts = np.cumsum(lengths_of_tokens) - lengths_of_tokens + self.spaces_V[ids]
        return np.searchsorted(np.cumsum(lengths), starts, side="right")


def spellings(tokenizer: Any, rows: int) -> list[bytes]:
    """What each id adds to a text, in UTF-8 and not always whole characters. A special token is a line break, which no word goes across."""
    spec = json.loads(tokenizer_json(tokenizer))
    spell, added = _speller(spec), {token["id"] for token in spec["added_tokens"]}
    pieces = [b""] * rows
    for piece, row in tokenizer.get_vocab().items():
        pieces[row] = piece.encode() if row in added else spell(piece)
    for row in tokenizer.all_special_ids:
        pieces[row] = b"\n"
    return pieces


def _speller(spec: dict[str, Any]) -> Callable[[str], bytes]:
    """How a kind of tokenizer writes its pieces: byte-level BPE, WordPiece, or SentencePiece, with or without byte fallback."""
    if '"ByteLevel"' in json.dumps([spec["pre_tokenizer"], spec["decoder"]]):
        symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
        own = [ord(symbol) for symbol in symbols if ord(symbol) < 256]  # bytes that print stand for themselves, the others are numbered
        byte_of = dict(zip(symbols, [*own, *sorted({*range(256)} - {*own})], strict=True))
        return lambda piece: bytes(byte_of[s] for s in piece) if byte_of.keys() >= {*piece} else piece.encode()
    if spec["model"]["type"] == "WordPiece":
        prefix = spec["model"]["continuing_subword_prefix"]

        def of_word(piece: str) -> bytes:
            if piece.startswith(prefix) and piece != prefix:
                return piece.removeprefix(prefix).encode()
            # What was in front of a word is not known any more. In front of a Chinese character there was hardly a space.
            return f" {piece}".encode() if _LETTER.match(piece) else piece.encode()

        return of_word

    def of_sentencepiece(piece: str) -> bytes:
        byte = _BYTE.fullmatch(piece)
        return bytes.fromhex(byte[1]) if byte else piece.replace("\u2581", " ").encode()

    return of_sentencepiece


def _load_segmenter() -> Callable[[str], list[str]]:
    try:
        import rjieba  # its dictionary takes memory and half a second, which only whole words are worth
    except ImportError as error:
        raise ConfigError(
            f"objective: whole_words finds Chinese words with rjieba, which cannot be imported ({error}); "
            "pip install rjieba, or set objective.whole_words: false"
        ) from error
    cut: Callable[[str], list[str]] = rjieba.cut
    return cut
