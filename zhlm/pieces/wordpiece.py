"""A WordPiece tokenizer, as BERT has it: a text is cut into words, and of each word the longest piece in front is taken, again and again.

Pieces inside of a word are written with ## in front. There are no merges, and no spelling for a word with an unknown character: it becomes
[UNK] as a whole. Chinese characters are words of their own in most such tokenizers (`handle_chinese_chars`), so no piece of two can be met.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece as WordPieceModel

from zhlm.errors import BaseModelError
from zhlm.pieces.base import Base, Start, is_one_script

ENCODE_BATCH = 20_000
MIN_USES = 2
"""A new piece that is taken only once on the corpus is not worth a row."""


@dataclass(frozen=True)
class WordPiece(Base):
    """The parts of a WordPiece tokenizer that extending needs."""

    KIND = "WordPiece"
    MERGES = False

    backend: Tokenizer
    spec: dict[str, Any]
    prefix: str
    """Written in front of a piece that continues a word."""
    unknown_id: int
    taker: Tokenizer
    """The same pieces on words."""
    continuations: Tokenizer
    """The same pieces on the rest of a word, given without the prefix."""

    @staticmethod
    def of(backend: Tokenizer, spec: dict[str, Any]) -> "WordPiece":
        """Raises: BaseModelError when the vocabulary lacks its own unknown token or the pieces are written without a prefix."""
        model = spec["model"]
        prefix, unknown = model.get("continuing_subword_prefix"), model.get("unk_token")
        if unknown not in model["vocab"] or not prefix:
            raise BaseModelError(
                f"vocab: the WordPiece tokenizer has the unknown token {unknown!r} and the prefix {prefix!r}, "
                "expected a token of its vocabulary and a string such as ##; mend tokenizer.json or set vocab: null"
            )
        inside = {piece.removeprefix(prefix): row for piece, row in model["vocab"].items() if _continues(piece, prefix)}
        inside |= {prefix + piece: row for piece, row in inside.items()} | {unknown: model["vocab"][unknown]}
        return WordPiece(backend, spec, prefix, model["vocab"][unknown], _taker(spec, model["vocab"]), _taker(spec, inside))

    def words(self, text: str) -> list[str]:
        """The words of a text."""
        return self._cut(self._normal(text))

    def ids(self, words: list[str]) -> list[list[int]]:
        """The old ids of words, the unknown one for words without a spelling."""
        return _ids(self.taker, words)

    def pre_tokens(self, text: str) -> list[str]:
        """Words, without those that are [UNK] whatever the vocabulary is (too long), or look like the rest of one."""
        longest = self.spec["model"]["max_input_chars_per_word"]
        return [word for word in self.words(text) if len(word) <= longest and not _continues(word, self.prefix)]

    def merge(self, batch: list[str]) -> list[list[int]]:
        """Old ids; where a word has no spelling, those of its characters, unknown ones among them."""
        inside = [_continues(piece, self.prefix) for piece in batch]
        whole = self.ids(batch)
        rest = iter(_ids(self.continuations, [p.removeprefix(self.prefix) for p, i in zip(batch, inside, strict=True) if i]))
        spelled = [next(rest) if i else ids for i, ids in zip(inside, whole, strict=True)]
        return [
            [self.vocabulary.get(form, self.unknown_id) for form in self._characters(piece)] if ids == [self.unknown_id] else ids
            for piece, ids in zip(batch, spelled, strict=True)
        ]

    def _characters(self, piece: str) -> list[str]:
        """The pieces of one character that would spell it."""
        forms = [self.prefix + char for char in piece.removeprefix(self.prefix)]
        return forms if _continues(piece, self.prefix) else [piece[0], *forms[1:]]

    def start(self, pre_tokens: Collection[str]) -> Start:
        """Every character is a piece, in front and inside: words that had a spelling keep it, for the longest piece still comes first."""
        first = {word[0] for word in pre_tokens if word}
        inside = set().union(*(word[1:] for word in pre_tokens))
        absent = sorted((first | {self.prefix + char for char in inside}) - self.vocabulary.keys())
        after = max(self.vocabulary.values()) + 1
        loose = {form: after + order for order, form in enumerate(absent)}
        taker = _taker(self.spec, self.vocabulary | loose)
        return Start(lambda batch: _ids(taker, batch), loose)

    def loose_gain(self, piece: str) -> int:
        """As if each byte of an unknown character were a token, and one more: an unknown word says nothing at all. An assumption."""
        return len(piece.removeprefix(self.prefix).encode())

    def join(self, left: str, right: str) -> str:
        return left + right.removeprefix(self.prefix)

    def may_be_piece(self, piece: str) -> bool:
        return is_one_script(piece.removeprefix(self.prefix) if _continues(piece, self.prefix) else piece)

    def spelled(self, word: str) -> list[int]:
        return [row for ids in self.merge(self.words(word)) for row in ids]

    def text_of(self, piece: str) -> str:
        return piece.removeprefix(self.prefix) if _continues(piece, self.prefix) else piece

    def alone(self, piece: str) -> str | None:
        return None if _continues(piece, self.prefix) else piece

    def contexts(self) -> Iterator[tuple[str, str]]:
        """A piece inside of a word needs a beginning that does not swallow it."""
        yield from super().contexts()
        heads = sorted((piece for piece in self.vocabulary if piece.isalnum()), key=lambda piece: (len(piece), piece))
        yield from ((head, "") for head in heads[:500])

    def used(self, pieces: list[str], pre_tokens: Mapping[str, int]) -> list[bool]:
        """Whether the longest-piece rule takes a piece: it knows no intermediate steps. Single characters are kept, for other words."""
        taker, first = self._with(pieces)
        uses = np.zeros(first + len(pieces), np.int64)
        words = list(pre_tokens)
        for at in range(0, len(words), ENCODE_BATCH):
            batch = words[at : at + ENCODE_BATCH]
            encoded = _ids(taker, batch)
            weights = np.repeat([pre_tokens[word] for word in batch], [len(ids) for ids in encoded])
            uses += np.bincount([row for ids in encoded for row in ids], weights, len(uses)).astype(np.int64)
        return [bool(n >= MIN_USES) or len(self.text_of(piece)) == 1 for piece, n in zip(pieces, uses[first:], strict=True)]

    def hurting(self, pieces: list[str], words: list[str]) -> set[str]:
        """A longer piece in front may leave a rest that no piece begins: every new piece inside of such a word is suspected."""
        taker, _ = self._with(pieces)
        both = zip(words, self.ids(words), _ids(taker, words), strict=True)
        lost = [word for word, before, after in both if after == [self.unknown_id] != before]
        return {piece for piece in pieces if any(self.text_of(piece) in word for word in lost)}

    def _with(self, pieces: list[str]) -> tuple[Tokenizer, int]:
        """These pieces added, and the id of the first."""
        first = max(self.vocabulary.values()) + 1
        return _taker(self.spec, self.vocabulary | {piece: first + order for order, piece in enumerate(pieces)}), first

    def shown(self, piece: str) -> str:
        return repr(piece)


def _continues(piece: str, prefix: str) -> bool:
    """Whether a piece stands inside of a word; the prefix itself is a piece like any other."""
    return piece.startswith(prefix) and piece != prefix


def _taker(spec: dict[str, Any], vocabulary: dict[str, int]) -> Tokenizer:
    model = spec["model"]
    return Tokenizer(
        WordPieceModel(
            vocab=vocabulary,
            unk_token=model["unk_token"],
            max_input_chars_per_word=model["max_input_chars_per_word"],
            continuing_subword_prefix=model["continuing_subword_prefix"],
        )
    )


def _ids(tokenizer: Tokenizer, words: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(words, add_special_tokens=False)]
