"""The proof of an extended tokenizer: every new piece can be produced, text comes back, and all text is the base's with more pieces.

A piece that is text should encode to its own id when it stands alone. Some cannot, because the tokenizer cuts text before merging (a space
and a word's beginning may only meet inside a longer text), and parts of a character are no text at all: for those some text must exist
that produces them. Shape letters: I ids of all texts.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from zhlm.errors import VerificationError
from zhlm.pieces.base import Base
from zhlm.pieces.count import CountTask, read_task
from zhlm.pieces.kinds import take_apart
from zhlm.pieces.learn import Learned
from zhlm.pieces.reach import reached, rows_of
from zhlm.pieces.wordpiece import WordPiece
from zhlm.pieces.words import check_special, check_untouched, check_words, there_and_back, without_words
from zhlm.tokenizer.encode import HARD_TEXTS, TokenizersEncoder, choose_encoder
from zhlm.tokenizer.engines import Engines
from zhlm.tokenizer.load import tokenizer_json
from zhlm.vocab.readings import Encoded, Ids, Reader, Readings


@dataclass(frozen=True)
class Proof:
    """What was found about an extended tokenizer; the content of verify.json."""

    new_pieces: int
    words: int
    """Of them, words of a list, which are added tokens."""
    special: int
    """New special tokens beside them, which no text is meant to produce."""
    alone: int
    """Pieces that encode to their own id alone."""
    covered: int
    """Other pieces that some text produces."""
    unreachable: list[str]
    """Pieces for which no text was found (byte-level ones as Python bytes): they only serve to build longer ones."""
    on_corpus: int
    """New pieces that the text of the new language produces."""
    texts: int
    """Texts that came back after decoding, and whose new pieces, spelled out, are the ids of the base. WordPiece: whose words are their
    pieces or unknown, as before where no new piece is in them, and none has become unknown."""
    characters: int
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


@dataclass(frozen=True)
class Claim:
    """An extension that is to be proved. Pickled, it goes to wherever text is read."""

    before: str
    """tokenizer.json of the base."""
    after: PreTrainedTokenizerFast
    """With the pieces and the words, as it was loaded again."""
    learned: Learned
    first_id: int
    """Of the learned pieces; the words' ids follow."""
    words: tuple[str, ...] = ()
    """Added tokens."""
    special: Mapping[str, int] = field(default_factory=dict)
    """Texts that have become special tokens -> id; the new ones are behind the words."""

    @property
    def rows(self) -> range:
        """Ids of pieces and words."""
        return range(self.first_id, self.first_id + len(self.learned.pieces) + len(self.words))

    def reader(self, parallel: bool = True) -> Reader:
        """What reads texts, on every core or on one, and raises VerificationError for one that the extension fails on.

        Raises: VerificationError, when a piece decodes to anything but its text.
        """
        before = Tokenizer.from_str(self.before)
        base = take_apart(before)
        check = _Extended(self, before, base, parallel).check
        return Reader(self.after, before, base, Engines(self.after, None, parallel), check)


def verify(
    before: PreTrainedTokenizerFast,
    after: PreTrainedTokenizerFast,
    learned: Learned,
    first_id: int,
    new_texts: Sequence[str],
    old_texts: Sequence[str],
    words: Sequence[str] = (),
) -> Proof:
    """Prove an extended tokenizer, whose new ids start at `first_id`, on texts of both languages; `words` are added tokens behind them.

    Raises: VerificationError when text does not come back, ids are not the base's merged further, or transformers and engine differ.
    """
    claim = Claim(tokenizer_json(before), after, learned, first_id, tuple(words))
    reader = claim.reader()
    return conclude(claim, reader.read(HARD_TEXTS), reader.read_all(new_texts), reader.read_all(old_texts))


def prove_file(task: CountTask, claim: bytes) -> Readings:
    """What a piece of a file shows of a pickled claim. Raises: VerificationError for the first text that it fails on."""
    return _reader(claim).read_all(read_task(task, task.prove_chars))


@lru_cache(maxsize=1)
def _reader(claim: bytes) -> Reader:
    """Kept between files: with small files, loading the tokenizers would take longer than reading."""
    loaded = pickle.loads(claim)
    assert isinstance(loaded, Claim), "a claim was pickled"
    return loaded.reader(parallel=False)


def conclude(claim: Claim, hard: Readings, new: Readings, old: Readings) -> Proof:
    """The proof, when the hard texts and those of the new and the old language have been read.

    Raises: VerificationError when transformers and the engine differ.
    """
    read = Readings()
    for part in (hard, new, old):
        read.add(part)
    if problem := read.engines["transformers"].problem(read.texts):
        raise VerificationError(f"vocab: transformers {problem}")
    after, pieces = tokenizer_json(claim.after), claim.learned.pieces
    base = take_apart(Tokenizer.from_str(claim.before))
    alone, covered = reached(TokenizersEncoder(after), base, rows_of(claim.learned, claim.first_id), new.seen)
    return Proof(
        new_pieces=len(claim.rows),
        words=len(claim.words),
        special=sum(row >= claim.rows.stop for row in claim.special.values()),
        alone=len(alone) + len(claim.words),
        covered=len(covered),
        unreachable=[base.shown(piece) for piece in pieces if piece not in alone and piece not in covered],
        on_corpus=new.num_seen(claim.rows),
        texts=read.texts,
        characters=read.characters,
        engine=_engine(after, read),
        old_texts=old.texts,
        old_texts_same=old.old_texts_same,
        old_tokens_new_share=old.new_tokens / max(1, old.tokens["after"]),
        unknown_share={when: new.unknown_share(when) for when in ("before", "after")},
    )


def _engine(after: str, read: Readings) -> dict[str, Any]:
    """The choice on hard texts and special tokens, if it holds on all text."""
    facts = choose_encoder(after, "auto", [])[1]
    if facts["engine"] != "gigatoken":
        return facts
    if problem := read.engines["gigatoken"].problem(read.texts):
        return {"engine": "tokenizers", "reason": f"gigatoken {problem}"}
    proof = {"texts": read.texts, "characters": read.characters}
    return facts | {"reason": "same ids as tokenizers on all text read", "proof": proof}


class _Extended:
    """What must hold for every text: the extended tokenizer, its words set aside, is the base with more pieces."""

    def __init__(self, claim: Claim, before: Tokenizer, base: Base, parallel: bool) -> None:
        self.claim, self.before, self.base, self.full = claim, before, base, claim.after.backend_tokenizer
        self.added = [*claim.words, *claim.special]
        self.bare = without_words(claim.after, self.added) if self.added else self.full
        check_special(self.full, claim.special)
        self.encoder = TokenizersEncoder(self.bare.to_str(), parallel)
        if isinstance(base, WordPiece):
            self.words = _Words(base, WordPiece.of(self.bare, json.loads(self.bare.to_str())), claim.first_id)
        else:
            spellings = _spellings(before, base, claim.learned)
            _check_pieces(before, self.bare, spellings, claim.first_id)
            self.spelled = _Spelled(spellings, claim.first_id)

    def check(self, texts: Sequence[str], after: Encoded, before: Encoded) -> None:
        """Raises: VerificationError for a text that does not come back, or whose ids are not the base's merged further."""
        bare = self.encoder.encode_batch(texts) if self.added else after
        rows = np.split(bare[0], bare[1][1:-1])
        if isinstance(self.base, WordPiece):
            self.words.check(texts, rows)
        else:
            self._check_round_trip(texts, rows)
            self.spelled.check(texts, bare, before)
        plain = [text for text in texts if not any(token in text for token in self.claim.special)]
        if words := self.claim.words:
            check_words(self.bare, self.full, words, self.claim.rows[-len(words)], plain, self.base.MERGES)
        elif self.added:
            check_untouched(self.bare, self.full, self.added, plain)

    def _check_round_trip(self, texts: Sequence[str], rows: Sequence[Ids]) -> None:
        """What comes back is the text; where the base already changed it (a normaliser, a space in front), the same as from the base."""
        came_back = self.bare.decode_batch([row.tolist() for row in rows], skip_special_tokens=False)
        for text, got in zip(texts, came_back, strict=True):
            if got != text and [got] != there_and_back(self.before, [text]):
                raise VerificationError(f"vocab: a text does not come back from the extended tokenizer: {text[:40]!r} became {got[:40]!r}")


@dataclass(frozen=True)
class _Words:
    """WordPiece: a text is its words; one whose ids changed is spelled by its pieces, a new one among them."""

    base: WordPiece
    extended: WordPiece
    first_id: int

    @cached_property
    def piece_of(self) -> dict[int, str]:
        return {row: piece for piece, row in self.extended.vocabulary.items()}

    def check(self, texts: Sequence[str], rows: Sequence[Ids]) -> None:
        words_of = [self.base.words(text) for text in texts]
        words = sorted({word for of_text in words_of for word in of_text})
        new_ids = dict(zip(words, self.extended.ids(words), strict=True))
        for word, old in zip(words, self.base.ids(words), strict=True):
            new = new_ids[word]
            if old != new and (max(new) < self.first_id or "".join(self.base.text_of(self.piece_of[row]) for row in new) != word):
                raise VerificationError(
                    f"vocab: the ids of the word {word[:40]!r} were {old[:9]} and became {new[:9]}, which do not spell it"
                )
        added = [token.content for token in self.extended.backend.get_added_tokens_decoder().values()]
        for text, of_text, row in zip(texts, words_of, rows, strict=True):
            if row.tolist() != [i for word in of_text for i in new_ids[word]] and not any(token in text for token in added):
                raise VerificationError(f"vocab: the extended tokenizer cuts a text in other places than the base: {text[:40]!r}")


class _Spelled:
    """Every new piece spelled out gives the base's ids back: nothing was cut anew, and text without new pieces keeps its ids."""

    def __init__(self, spellings: Sequence[Sequence[int]], first_id: int) -> None:
        self.lengths = np.ones(first_id + len(spellings), np.int64)
        self.lengths[first_id:] = [len(s) for s in spellings]
        self.begin = np.cumsum(self.lengths) - self.lengths
        self.pool = np.concatenate([np.arange(first_id), np.asarray([row for s in spellings for row in s], np.int64)])

    def check(self, texts: Sequence[str], after: Encoded, before: Encoded) -> None:
        (after_I, offsets), (before_I, before_offsets) = after, before
        length_I = self.lengths[after_I]
        ends = np.concatenate([[0], np.cumsum(length_I)])
        spelled_I = self.pool[np.repeat(self.begin[after_I] - ends[:-1], length_I) + np.arange(ends[-1])]
        if np.array_equal(spelled_I, before_I) and np.array_equal(ends[offsets], before_offsets):
            return
        pairs = zip(texts, np.split(spelled_I, ends[offsets][1:-1]), np.split(before_I, before_offsets[1:-1]), strict=True)
        text = next(text for text, spelled, expected in pairs if not np.array_equal(spelled, expected))
        raise VerificationError(
            f"vocab: the extended tokenizer cuts text in other places than the base with more merges would: {text[:40]!r}"
        )


def _spellings(before: Tokenizer, base: Base, learned: Learned) -> list[list[int]]:
    """Of each new piece, the base's ids it was merged from."""
    vocabulary = before.get_vocab()
    spelled: dict[str, list[int]] = {}
    for piece, merge in zip(learned.pieces, learned.merges, strict=True):
        parts = merge and [row for part in merge for row in (spelled.get(part) or [vocabulary[part]])]
        spelled[piece] = parts or base.merge([piece])[0]
    return list(spelled.values())


def _check_pieces(before: Tokenizer, after: Tokenizer, spellings: Sequence[Sequence[int]], first_id: int) -> None:
    """Each new piece decodes to what its spelling decodes to."""
    got = after.decode_batch([[first_id + order] for order in range(len(spellings))], skip_special_tokens=False)
    expected = before.decode_batch([list(s) for s in spellings], skip_special_tokens=False)
    wrong = [(a, b) for a, b in zip(got, expected, strict=True) if a != b]
    if wrong:
        raise VerificationError(f"vocab: {len(wrong)} new pieces do not decode to their text, {wrong[0][1]!r} became {wrong[0][0]!r}")
