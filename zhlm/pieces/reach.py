"""Which new pieces some text produces, and an extension without those that none does."""

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerFast

from zhlm.pieces.base import Base
from zhlm.pieces.extend import extend, first_new_id
from zhlm.pieces.learn import Learned
from zhlm.pieces.words import add_words
from zhlm.tokenizer.encode import Encoder, TokenizersEncoder
from zhlm.tokenizer.load import tokenizer_json


def extend_reachable(
    tokenizer: PreTrainedTokenizerFast, base: Base, learned: Learned, texts: Sequence[str], words: Sequence[str] = ()
) -> tuple[PreTrainedTokenizerFast, Learned]:
    """The extended tokenizer, with `words` as added tokens behind the pieces, and the pieces it has: without those that no text produces
    or that cost a word of `texts` its spelling."""
    first_id = first_new_id(tokenizer)
    met = sorted({word for text in texts for word in base.pre_tokens(text)}) if not base.MERGES else []
    while True:
        extended = extend(tokenizer, base, learned)
        if words:
            add_words(extended, words, first_id + len(learned.pieces))
        alone, covered = reached(TokenizersEncoder(tokenizer_json(extended)), base, rows_of(learned, first_id), ())
        unwanted = {piece for piece in learned.pieces if piece not in alone and piece not in covered} | base.hurting(learned.pieces, met)
        if not unwanted:
            return extended, learned
        learned = learned.without(unwanted)


def rows_of(learned: Learned, first_id: int) -> dict[str, int]:
    return {piece: first_id + order for order, piece in enumerate(learned.pieces)}


def reached(encoder: Encoder, base: Base, row_of: dict[str, int], seen: Collection[int]) -> tuple[set[str], set[str]]:
    """Pieces that encode to their own id alone, and the others that some text produces; `seen` are ids that texts are known to produce."""
    alone = _alone(encoder, base, row_of)
    covered = {piece for piece in row_of if piece not in alone and row_of[piece] in seen}
    rest = [piece for piece in row_of if piece not in alone and piece not in covered]
    texts = {piece: text for piece in rest if (text := base.text_of(piece)) is not None}
    for before, behind in base.contexts():
        if not texts:
            break
        found = _producing(encoder, {piece: before + text + behind for piece, text in texts.items()}, row_of)
        covered |= found
        texts = {piece: text for piece, text in texts.items() if piece not in found}
    parts = (piece for piece in rest if base.text_of(piece) is None)
    return alone, covered | {piece for piece in parts if (encoder.encode_batch(list(base.containing(piece)))[0] == row_of[piece]).any()}


def _alone(encoder: Encoder, base: Base, row_of: dict[str, int]) -> set[str]:
    texts = {piece: text for piece in row_of if (text := base.alone(piece)) is not None}
    ids_I, offsets = encoder.encode_batch(list(texts.values()))
    starts_and_ends = zip(texts, offsets[:-1], offsets[1:], strict=True)
    return {piece for piece, start, end in starts_and_ends if end - start == 1 and ids_I[start] == row_of[piece]}


def _producing(encoder: Encoder, texts: dict[str, str], row_of: dict[str, int]) -> set[str]:
    """Of pieces with a text each, those that occur in their text's ids."""
    ids_I, offsets = encoder.encode_batch(list(texts.values()))
    starts_and_ends = zip(texts, offsets[:-1], offsets[1:], strict=True)
    return {piece for piece, start, end in starts_and_ends if (ids_I[start:end] == row_of[piece]).any()}
