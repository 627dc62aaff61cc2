"""A base's tokenizer, taken apart: what extending needs to know about it, whatever its kind.

A `piece` is a string of the vocabulary as the model writes it (byte symbols, a space as U+2581, ## in front). A `pre-token` is a
part of a text, written the same way, that the model cuts into pieces without looking at its neighbours.
"""

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tokenizers import Tokenizer

CJK = "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters of scripts that are written without spaces between words, as a range of a regular expression: Han and kana."""


@dataclass(frozen=True)
class Start:
    """How a learner sees a corpus before the first new piece."""

    encode: Callable[[list[str]], list[list[int]]]
    """Pre-tokens -> their symbols: old ids, and ids of characters that are no pieces yet."""
    loose: Mapping[str, int]
    """Such characters as pieces, and the symbol of each."""


class Base(ABC):
    """One kind of tokenizer, with one of its kind."""

    KIND: ClassVar[str]
    MERGES: ClassVar[bool]
    """Whether pieces are merged from others, so that any text has a spelling, and new pieces spelled in old ones give the base's ids."""

    backend: Tokenizer
    spec: dict[str, Any]
    """The tokenizer.json."""

    @property
    def vocabulary(self) -> dict[str, int]:
        """Piece -> id of the model; special tokens may or may not be among them."""
        vocabulary: dict[str, int] = self.spec["model"]["vocab"]
        return vocabulary

    @abstractmethod
    def pre_tokens(self, text: str) -> list[str]:
        """A text as it is cut before the model sees it."""

    @abstractmethod
    def merge(self, batch: list[str]) -> list[list[int]]:
        """Old ids of pre-tokens or new pieces."""

    def start(self, pre_tokens: Collection[str]) -> Start:
        """Where learning on these pre-tokens begins."""
        return Start(self.merge, {})

    def loose_gain(self, piece: str) -> int:
        """Tokens saved at each place where a loose character becomes a piece."""
        raise NotImplementedError(f"{self.KIND} has no characters without a spelling")

    def join(self, left: str, right: str) -> str:
        """The piece that two neighbours make."""
        return left + right

    @abstractmethod
    def may_be_piece(self, piece: str) -> bool:
        """Whether a new piece may be this string."""

    def written(self, text: str) -> str:
        """A part of a text as a piece of it would be written."""
        return text

    def spelled(self, word: str) -> list[int]:
        """Old ids of a word alone."""
        return self.merge([self.written(word)])[0]

    @abstractmethod
    def text_of(self, piece: str) -> str | None:
        """The text that a piece stands for inside of a longer one; None for a part of a character."""

    def alone(self, piece: str) -> str | None:
        """The whole text that should be this piece and nothing else, where there is one."""
        return self.text_of(piece)

    def contexts(self) -> Iterator[tuple[str, str]]:
        """What to put before and behind a piece's text until it is produced."""
        around = ("", "a", "1", ".", "\u4e2d")
        return ((before, behind) for before in around for behind in around)

    def shown(self, piece: str) -> str:
        """A piece for people to read."""
        return repr(self.text_of(piece))

    def containing(self, piece: str) -> Iterable[str]:
        """Texts that may produce a piece that is a part of a character."""
        return ()

    def used(self, pieces: list[str], pre_tokens: Mapping[str, int]) -> list[bool]:
        """Whether each new piece, in the presence of the others, is worth its row on these pre-tokens."""
        return [True] * len(pieces)

    def hurting(self, pieces: list[str], words: list[str]) -> set[str]:
        """New pieces that take some of these pre-tokens the spelling that they had."""
        return set()

    def _normal(self, text: str) -> str:
        normaliser = self.backend.normalizer
        return str(normaliser.normalize_str(text)) if normaliser is not None else text

    def _cut(self, normal: str) -> list[str]:
        """A normalised text as the pre-tokenizer cuts it."""
        cutter = self.backend.pre_tokenizer
        return [part for part, _ in cutter.pre_tokenize_str(normal)] if cutter is not None else [normal] * bool(normal)


def types_in(node: Any) -> set[str]:
    """Every `type` named in a part of a tokenizer.json."""
    if isinstance(node, dict):
        return {str(node.get("type"))}.union(*(types_in(v) for v in node.values()))
    return set().union(*(types_in(v) for v in node)) if isinstance(node, list) else set()


def merges_of(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE model, which old files write as `a b` and new ones as pairs."""
    return [_pair(merge) for merge in spec["model"]["merges"]]


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def is_one_script(text: str) -> bool:
    """Whether a text is all Han and kana, all other letters, all digits or all anything else; marks and joiners go with each."""
    return len({_script(char) for char in text} - {"mark"}) <= 1


def _script(char: str) -> str:
    category = unicodedata.category(char)
    if _CJK.match(char):
        return "cjk"
    if category[0] == "M" or category == "Cf":
        return "mark"
    return {"L": "letter", "N": "digit"}.get(category[0], "other")


_CJK = re.compile(f"[{CJK}]")
