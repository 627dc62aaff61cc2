"""The proof of an extended tokenizer: every new piece can be produced, text comes back, and all text is the base's with more pieces.

A piece that is text should encode to its own id when it stands alone. Some cannot, because the tokenizer cuts text before merging (a space
and a word's beginning may only meet inside a longer text), and parts of a character are no text at all: for those some text must exist
that produces them. Shape letters: I ids of all texts.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from zhlm.errors import VerificationError
from zhlm.pieces.base import Base
from zhlm.pieces.kinds import take_apart
from zhlm.pieces.learn import Learned
from zhlm.pieces.reach import reached, rows_of
from zhlm.pieces.wordpiece import WordPiece
from zhlm.pieces.words import check_words, there_and_back, without_words
from zhlm.tokenizer.encode import HARD_TEXTS, Encoder, TokenizersEncoder, choose_encoder
from zhlm.tokenizer.load import tokenizer_json
from zhlm.vocab.worth import unknown_share

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Proof:
    """What was found about an extended tokenizer; the content of verify.json."""

    new_pieces: int
    words: int
    """Of them, words of a list, which are added tokens."""
    alone: int
    """Pieces that encode to their own id alone."""
    covered: int
    """Other pieces that some text produces."""
    unreachable: list[str]
    """Pieces for which no text was found (byte-level ones as Python bytes): they only serve to build longer ones."""
    on_sample: int
    """New pieces that the sample of the new language produces."""
    texts: int
    """Texts that came back after decoding, and whose new pieces, spelled out, are the ids of the base. WordPiece: whose words are their
    pieces or unknown, as before where no new piece is in them, and none has become unknown."""
    engine: dict[str, Any]
    """Which engine encodes this tokenizer fastest with the same ids, and on how much that was proved."""
    old_texts: int
    old_texts_same: int
    """Texts of the old language without any new piece: their ids are as before."""
    old_tokens_new_share: float
    """Share of their tokens that are new pieces."""
    unknown_share: dict[str, float]
    """Share of the new language's tokens that say only that a word is unknown, before and after; WordPiece alone has any."""

    @property
    def reachable(self) -> int:
        return self.alone + self.covered

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"reachable": self.reachable}


def verify(
    before: PreTrainedTokenizerFast,
    after: PreTrainedTokenizerFast,
    learned: Learned,
    first_id: int,
    new_texts: Sequence[str],
    old_texts: Sequence[str],
    words: Sequence[str] = (),
) -> Proof:
    """Prove an extended tokenizer, whose new ids start at `first_id`, on a sample of both languages; `words` are added tokens behind them.

    Raises: VerificationError when text does not come back, ids are not the base's merged further, or transformers and engine differ.
    """
    texts = [*HARD_TEXTS, *new_texts, *old_texts]
    base = take_apart(before.backend_tokenizer)
    encoder, base_encoder = TokenizersEncoder(tokenizer_json(after)), TokenizersEncoder(tokenizer_json(before))
    ids_I, offsets = encoder.encode_batch(texts)
    before_I, before_offsets = base_encoder.encode_batch(texts)
    bare = without_words(after, words) if words else after.backend_tokenizer
    _check_extension(before, bare, base, learned, first_id, texts, before_I)
    if words:
        check_words(bare, after.backend_tokenizer, words, first_id + len(learned.pieces), texts, base.MERGES)
    _check_wrapper(encoder, after, [*HARD_TEXTS, *new_texts[:200]])
    first_new, first_old = len(HARD_TEXTS), len(HARD_TEXTS) + len(new_texts)
    new_from, old_from = int(offsets[first_new]), int(offsets[first_old])
    row_of = rows_of(learned, first_id)
    seen = set(np.unique(ids_I[new_from:old_from]).tolist())
    alone, covered = reached(encoder, base, row_of, seen)
    word_rows = range(first_id + len(learned.pieces), first_id + len(learned.pieces) + len(words))
    fresh = [int((row >= first_id).sum()) for row in np.split(ids_I[old_from:], offsets[first_old + 1 : -1] - old_from)]
    new_before_I = before_I[before_offsets[first_new] : before_offsets[first_old]]
    return Proof(
        new_pieces=len(learned.pieces) + len(words),
        words=len(words),
        alone=len(alone) + len(words),
        covered=len(covered),
        unreachable=[base.shown(piece) for piece in learned.pieces if piece not in alone and piece not in covered],
        on_sample=sum(row in seen for row in (*row_of.values(), *word_rows)),
        texts=len(texts),
        engine=choose_encoder(tokenizer_json(after), "auto", [*new_texts, *old_texts])[1],
        old_texts=len(old_texts),
        old_texts_same=fresh.count(0) if old_texts else 0,
        old_tokens_new_share=sum(fresh) / max(1, len(ids_I) - old_from),
        unknown_share={"before": unknown_share(base, new_before_I), "after": unknown_share(base, ids_I[new_from:old_from])},
    )


def _check_extension(
    before: PreTrainedTokenizerFast,
    after: Tokenizer,
    base: Base,
    learned: Learned,
    first_id: int,
    texts: Sequence[str],
    before_I: Ids,
) -> None:
    """The extended tokenizer, its words set aside, is the base with more pieces."""
    after_I, offsets = TokenizersEncoder(after.to_str()).encode_batch(texts)
    rows = np.split(after_I, offsets[1:-1])
    if isinstance(base, WordPiece):
        _check_words(base, after, texts, rows, first_id)
        return
    spellings = _spellings(before, base, learned)
    _check_pieces(before, after, spellings, first_id)
    _check_round_trip(before, after, texts, rows)
    _check_spelling(before_I, after_I, spellings, first_id)


def _check_round_trip(before: PreTrainedTokenizerFast, after: Tokenizer, texts: Sequence[str], rows: Sequence[Ids]) -> None:
    """What comes back is the text itself; where the base already changed it (a normaliser, a space in front), the same as from the base."""
    came_back = after.decode_batch([row.tolist() for row in rows], skip_special_tokens=False)
    for text, got in zip(texts, came_back, strict=True):
        if got != text and [got] != there_and_back(before.backend_tokenizer, [text]):
            raise VerificationError(f"vocab: a text does not come back from the extended tokenizer: {text[:40]!r} became {got[:40]!r}")


def _check_words(base: WordPiece, after: Tokenizer, texts: Sequence[str], rows: Sequence[Ids], first_id: int) -> None:
    """A text is its words; one whose ids changed is spelled by its pieces, a new one among them."""
    words_of = [base.words(text) for text in texts]
    words = sorted({word for of_text in words_of for word in of_text})
    extended = WordPiece.of(after, json.loads(after.to_str()))
    new_ids = dict(zip(words, extended.ids(words), strict=True))
    piece_of = {row: piece for piece, row in extended.vocabulary.items()}
    for word, old in zip(words, base.ids(words), strict=True):
        new = new_ids[word]
        if old != new and (max(new) < first_id or "".join(base.text_of(piece_of[row]) for row in new) != word):
            raise VerificationError(f"vocab: the ids of the word {word[:40]!r} were {old[:9]} and became {new[:9]}, which do not spell it")
    added = [token.content for token in after.get_added_tokens_decoder().values()]
    for text, of_text, row in zip(texts, words_of, rows, strict=True):
        if row.tolist() != [i for word in of_text for i in new_ids[word]] and not any(token in text for token in added):
            raise VerificationError(f"vocab: the extended tokenizer cuts a text in other places than the base: {text[:40]!r}")


def _spellings(before: PreTrainedTokenizerFast, base: Base, learned: Learned) -> list[list[int]]:
    """Of each new piece, the base's ids it was merged from."""
    vocabulary = before.get_vocab()
    spelled: dict[str, list[int]] = {}
    for piece, merge in zip(learned.pieces, learned.merges, strict=True):
        parts = merge and [row for part in merge for row in (spelled.get(part) or [vocabulary[part]])]
        spelled[piece] = parts or base.merge([piece])[0]
    return list(spelled.values())


def _check_pieces(before: PreTrainedTokenizerFast, after: Tokenizer, spellings: Sequence[Sequence[int]], first_id: int) -> None:
    """Each new piece decodes to what its spelling decodes to."""
    got = after.decode_batch([[first_id + order] for order in range(len(spellings))], skip_special_tokens=False)
    expected = before.backend_tokenizer.decode_batch([list(s) for s in spellings], skip_special_tokens=False)
    wrong = [(a, b) for a, b in zip(got, expected, strict=True) if a != b]
    if wrong:
        raise VerificationError(f"vocab: {len(wrong)} new pieces do not decode to their text, {wrong[0][1]!r} became {wrong[0][0]!r}")


def _check_spelling(before_I: Ids, after_I: Ids, spellings: Sequence[Sequence[int]], first_id: int) -> None:
    """Every new piece spelled out gives the base's ids back: nothing was cut anew, and text without new pieces keeps its ids."""
    starts = np.cumsum([0, *(len(s) for s in spellings)])[:-1] + first_id
    lengths = np.ones(first_id + len(spellings), np.int64)
    lengths[first_id:] = [len(s) for s in spellings]
    begin = np.arange(first_id + len(spellings))
    begin[first_id:] = starts
    pool = np.concatenate([np.arange(first_id), np.asarray([row for s in spellings for row in s], np.int64)])
    length_I = lengths[after_I]
    offset_I = np.arange(length_I.sum()) - np.repeat(np.cumsum(length_I) - length_I, length_I)
    spelled_I = pool[np.repeat(begin[after_I], length_I) + offset_I]
    if not np.array_equal(spelled_I, before_I):
        raise VerificationError("vocab: the extended tokenizer cuts text in other places than the base with more merges would")


def _check_wrapper(encoder: Encoder, after: PreTrainedTokenizerFast, texts: Sequence[str]) -> None:
    """The transformers tokenizer around the engine must not add to it."""
    wrapped = after(list(texts), add_special_tokens=False)["input_ids"]
    ids_I, offsets = encoder.encode_batch(texts)
    wrong = [t for t, row, ids in zip(texts, np.split(ids_I, offsets[1:-1]), wrapped, strict=True) if row.tolist() != ids]
    if wrong:
        raise VerificationError(f"vocab: transformers and tokenizers disagree on {len(wrong)} texts, {wrong[0][:40]!r} among them")
