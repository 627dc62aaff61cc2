"""The proof of an extended tokenizer: every new piece can be produced, text comes back, and all text is the base's with more merges.

A piece that is text should encode to its own id when it stands alone. Some cannot, because the tokenizer cuts text before merging (a space
and a word's beginning may only meet inside a longer text), and parts of a character are no text at all: for those some text must exist
that produces them. Shape letters: I ids of all texts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from zhlm.errors import VerificationError
from zhlm.tokenizer.encode import HARD_TEXTS, Encoder, TokenizersEncoder, choose_encoder
from zhlm.tokenizer.load import tokenizer_json
from zhlm.vocab.bytelevel import is_text, to_bytes
from zhlm.vocab.learn import Learned

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Proof:
    """What was found about an extended tokenizer; the content of verify.json."""

    new_pieces: int
    alone: int
    """Pieces that encode to their own id alone."""
    covered: int
    """Other pieces that some text produces."""
    unreachable: list[str]
    """Pieces for which no text was found (as Python bytes): they only serve to build longer ones."""
    on_sample: int
    """New pieces that the sample of the new language produces."""
    texts: int
    """Texts that came back after decoding, and whose new pieces, spelled out, are the ids of the base."""
    engine: dict[str, Any]
    """Which engine encodes this tokenizer fastest with the same ids, and on how much that was proved."""
    old_texts: int
    old_texts_same: int
    """Texts of the old language without any new piece: their ids are as before."""
    old_tokens_new_share: float
    """Share of their tokens that are new pieces."""

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
) -> Proof:
    """Prove an extended tokenizer, whose new ids start at `first_id`, on a sample of both languages.

    Raises: VerificationError when text does not come back, ids are not the base's merged further, or transformers and engine differ.
    """
    texts = [*HARD_TEXTS, *new_texts, *old_texts]
    encoder, base_encoder = TokenizersEncoder(tokenizer_json(after)), TokenizersEncoder(tokenizer_json(before))
    ids_I, offsets = encoder.encode_batch(texts)
    _check_round_trip(before, after, texts, np.split(ids_I, offsets[1:-1]))
    _check_spelling(base_encoder.encode_batch(texts)[0], ids_I, _spellings(before, learned, first_id), first_id)
    _check_wrapper(encoder, after, [*HARD_TEXTS, *new_texts[:200]])
    new_from, old_from = int(offsets[len(HARD_TEXTS)]), int(offsets[len(HARD_TEXTS) + len(new_texts)])
    row_of = {piece: first_id + order for order, piece in enumerate(learned.pieces)}
    seen = set(np.unique(ids_I[new_from:old_from]).tolist())
    alone = _alone(encoder, row_of)
    rest = [piece for piece in learned.pieces if piece not in alone]
    covered = {piece for piece in rest if row_of[piece] in seen or _is_produced(encoder, piece, row_of[piece])}
    fresh = [
        int((row >= first_id).sum()) for row in np.split(ids_I[old_from:], offsets[len(HARD_TEXTS) + len(new_texts) + 1 : -1] - old_from)
    ]
    return Proof(
        new_pieces=len(learned.pieces),
        alone=len(alone),
        covered=len(covered),
        unreachable=[repr(to_bytes(piece)) for piece in rest if piece not in covered],
        on_sample=sum(row in seen for row in row_of.values()),
        texts=len(texts),
        engine=choose_encoder(tokenizer_json(after), "auto", [*new_texts, *old_texts])[1],
        old_texts=len(old_texts),
        old_texts_same=fresh.count(0) if old_texts else 0,
        old_tokens_new_share=sum(fresh) / max(1, len(ids_I) - old_from),
    )


def _check_round_trip(before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast, texts: Sequence[str], rows: Sequence[Ids]) -> None:
    """What comes back is the text itself; where the base already changed it (a normaliser, a space in front), the same as from the base."""
    came_back = after.backend_tokenizer.decode_batch([row.tolist() for row in rows], skip_special_tokens=False)
    for text, got in zip(texts, came_back, strict=True):
        if got != text and got != _there_and_back(before, text):
            raise VerificationError(f"vocab: a text does not come back from the extended tokenizer: {text[:40]!r} became {got[:40]!r}")


def _there_and_back(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    backend = tokenizer.backend_tokenizer
    return str(backend.decode(backend.encode(text, add_special_tokens=False).ids, skip_special_tokens=False))


def _spellings(before: PreTrainedTokenizerFast, learned: Learned, first_id: int) -> list[list[int]]:
    """Of each new piece, the base's ids it was merged from."""
    vocabulary = before.get_vocab()
    spelled: dict[str, list[int]] = {}
    for piece, merge in zip(learned.pieces, learned.merges, strict=True):
        spelled[piece] = [row for part in merge for row in (spelled.get(part) or [vocabulary[part]])]
    return list(spelled.values())


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


def _alone(encoder: Encoder, row_of: dict[str, int]) -> set[str]:
    texts = {piece: to_bytes(piece).decode("utf-8") for piece in row_of if is_text(to_bytes(piece))}
    ids_I, offsets = encoder.encode_batch(list(texts.values()))
    sizes = np.diff(offsets)
    return {piece for piece, start, size in zip(texts, offsets, sizes, strict=False) if size == 1 and ids_I[start] == row_of[piece]}


def _is_produced(encoder: Encoder, piece: str, row: int) -> bool:
    """Whether some text produces the piece: characters put around it, or each character that it is a part of."""
    data = to_bytes(piece)
    if is_text(data):
        texts = [
            before + data.decode("utf-8") + behind for before in ("", "a", "1", ".", "\u4e2d") for behind in ("", "a", "1", ".", "\u4e2d")
        ]
    else:
        texts = _containing(data)
    return bool((encoder.encode_batch(texts)[0] == row).any())


def _containing(fragment: bytes) -> list[str]:
    """Characters of which the bytes are a part, at any place in them."""
    places = [(length, offset) for length in range(len(fragment) + 1, 5) for offset in range(length - len(fragment) + 1)]
    return [text for length, offset in places for text in _around(fragment, length, offset)]


def _around(fragment: bytes, length: int, offset: int) -> Iterable[str]:
    """All characters of `length` bytes with the fragment at `offset`: a few thousand at most, for a new piece is two bytes or more."""
    leads = {2: range(0xC2, 0xE0), 3: range(0xE0, 0xF0), 4: range(0xF0, 0xF5)}[length]
    stems = [b""]
    for place in range(length):
        inside = offset <= place < offset + len(fragment)
        options: Iterable[int] = [fragment[place - offset]] if inside else leads if place == 0 else range(0x80, 0xC0)
        stems = [stem + bytes([byte]) for stem in stems for byte in options]
    return (stem.decode("utf-8") for stem in stems if is_text(stem))
