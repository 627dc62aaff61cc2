"""Words that a person wants as tokens: read, refused where they cannot be, added to a tokenizer and taken away again, and the proof.

They are added tokens, cut out of a text before anything else looks at it, not merges: a list of names or terms, not a way to grow a
vocabulary by thousands.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from zhlm.corpus.word_list import word_lines
from zhlm.errors import BaseModelError, ConfigError, VerificationError
from zhlm.pieces.base import Base
from zhlm.pieces.wordpiece import WordPiece
from zhlm.tokenizer.load import tokenizer_json

CONTEXTS = ("{}", "\u4e2d{}\u6587", "a {} b.", "{}{}")
"""What words are tried in."""


def read_words(path: str, tokenizer: PreTrainedTokenizerFast, base: Base) -> list[str]:
    """The words of a list, in order, an empty line passed over.

    Raises: ConfigError for a list that cannot be read, is empty, or has a word twice, with spaces, or that is a token already;
        BaseModelError for a tokenizer that would change the text around them.
    """
    known, line_of = tokenizer.get_vocab(), dict[str, int]()
    for number, line in enumerate(word_lines(path), 1):
        if not line:
            continue
        wrong = _complaint(line, line_of, known, base)
        if wrong:
            raise ConfigError(f"vocab: the word list {path} line {number} has {line[:40]!r}, {wrong}", path=path, line=number)
        line_of[line] = number
    if not line_of:
        raise ConfigError(f"vocab: the word list {path} is empty, expected a word per line; fill it or remove vocab.word_list", path=path)
    words = list(line_of)
    _check_fit(tokenizer, base, words)
    return words


def _complaint(word: str, line_of: Mapping[str, int], known: Collection[str], base: Base) -> str:
    if word in line_of:
        return f"which line {line_of[word]} has too, expected each word once; remove one"
    if re.search(r"\s", word):
        return "which has a space, expected one word per line; remove the space or the line"
    spelling = base.spelled(word)
    if word in known or (len(spelling) == 1 and not (isinstance(base, WordPiece) and spelling == [base.unknown_id])):
        return "which is a token of the base already; remove the line"
    return ""


def _check_fit(tokenizer: PreTrainedTokenizerFast, base: Base, words: Sequence[str]) -> None:
    """Some SentencePiece forms put a space behind an added token."""
    backend = Tokenizer.from_str(tokenizer_json(tokenizer))
    texts = [context.replace("{}", word) for word in words[:100] for context in CONTEXTS]
    expected = there_and_back(backend, texts)
    backend.add_tokens(_tokens(words))
    got = there_and_back(backend, texts)
    changed = next((pair for pair in zip(texts, expected, got, strict=True) if pair[2] not in pair[:2]), None)
    if changed and base.MERGES:
        raise BaseModelError(
            f"vocab: this tokenizer cannot have words of a list: with them {changed[0][:40]!r} comes back as {changed[2][:40]!r}; "
            "remove vocab.word_list, pieces are learned from the corpus all the same"
        )


def there_and_back(backend: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Texts encoded and decoded, no special token added or left out."""
    encoded = backend.encode_batch(list(texts), add_special_tokens=False)
    return [str(text) for text in backend.decode_batch([e.ids for e in encoded], skip_special_tokens=False)]


def _tokens(words: Sequence[str]) -> list[AddedToken]:
    return [AddedToken(word, normalized=False, special=False) for word in words]


def add_words(tokenizer: PreTrainedTokenizerFast, words: Sequence[str], first_id: int) -> None:
    """Give a tokenizer its words, with the ids from `first_id` on. Raises: VerificationError when they get others."""
    tokenizer.add_tokens(_tokens(words))
    got = tokenizer.convert_tokens_to_ids(list(words))
    if got != list(range(first_id, first_id + len(words))):
        raise VerificationError(f"vocab: the words of the list got the ids {got[:5]} ..., expected {first_id} and the next ones")


def without_words(tokenizer: PreTrainedTokenizerFast, words: Collection[str]) -> Tokenizer:
    """The same without its words."""
    spec = json.loads(tokenizer_json(tokenizer))
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in words]
    return Tokenizer.from_str(json.dumps(spec))


def cut_words(pre_tokens: Mapping[str, int], base: Base, words: Sequence[str]) -> Counter[str]:
    """Pre-tokens as they are when the words have been taken out of the text, so that nothing is learned that they would hide."""
    cut: Counter[str] = Counter()
    border = re.compile("|".join(re.escape(base.written(word)) for word in sorted(words, key=len, reverse=True)))
    for pre_token, count in pre_tokens.items():
        for part in border.split(pre_token):
            if part:
                cut[part] += count
    return cut


@dataclass(frozen=True)
class WithWords:
    """What knows the old ids of new pieces and of words; special tokens have none."""

    base: Base
    words: frozenset[str]
    special: frozenset[str] = frozenset()

    def merge(self, batch: list[str]) -> list[list[int]]:
        pieces = [piece for piece in batch if piece not in self.words and piece not in self.special]
        spelled = dict(zip(pieces, self.base.merge(pieces), strict=True)) | {token: [] for token in self.special}
        return [self.base.spelled(piece) if piece in self.words else spelled[piece] for piece in batch]


def check_words(bare: Tokenizer, after: Tokenizer, words: Sequence[str], first_id: int, texts: Sequence[str], merges: bool) -> None:
    """Each word is its own token alone and inside of a text, and decodes to itself; a text without any keeps its ids.

    `bare` is the tokenizer without its words; `merges` as in `Base.MERGES`.

    Raises: VerificationError.
    """
    ids = [e.ids for e in after.encode_batch(list(words), add_special_tokens=False)]
    wrong = [word for n, word in enumerate(words) if ids[n] != [first_id + n] or after.decode(ids[n]) != word]
    if wrong:
        raise VerificationError(f"vocab: {len(wrong)} words of the list are not a token of their own, {wrong[0][:40]!r} among them")
    check_untouched(bare, after, words, texts)
    border = re.compile("|".join(map(re.escape, words)))
    marked = [text for text in texts if border.search(text)] if merges else []
    for text, expected, got in zip(marked, there_and_back(bare, marked), there_and_back(after, marked), strict=True):
        if got not in (text, expected):
            raise VerificationError(f"vocab: a text with words of the list does not come back: {text[:40]!r} became {got[:40]!r}")


def _ids(backend: Tokenizer, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
    return [np.array(e.ids, np.uint32) for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def check_untouched(bare: Tokenizer, after: Tokenizer, added: Collection[str], texts: Sequence[str]) -> None:
    """A text without any of the added tokens keeps its ids. Raises: VerificationError."""
    border = re.compile("|".join(map(re.escape, added)))
    plain = [text for text in texts if not border.search(text)]
    moved = [t for t, one, two in zip(plain, _ids(bare, plain), _ids(after, plain), strict=True) if not np.array_equal(one, two)]
    if moved:
        raise VerificationError(f"vocab: the added tokens change the ids of a text without any: {moved[0][:40]!r}")


def check_special(after: Tokenizer, ids: Mapping[str, int]) -> None:
    """Each special token is its own id, alone and inside of a text. Raises: VerificationError."""
    for text, row in ids.items():
        if after.encode(text, add_special_tokens=False).ids != [row] or row not in after.encode(f"\u4e2da{text}\u6587").ids:
            raise VerificationError(f"vocab: the special token {text!r} is not read as its id {row}")
