"""Texts of any length, encoded in bounded memory: cut where that is proved to change no id."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from zhlm.tokenizer.encode import Encoder

LONG_CHARACTERS = 1_000_000
"""Texts up to here are encoded whole; longer ones in pieces of at least this many characters."""

CUTS = (
    r"(?<=\S\n)(?=\S)",  # after a line's end
    "(?<=[\u4e00-\u9fff])(?=[\u3002\uff01\uff1f\uff1b\uff0c])",  # before Chinese punctuation: pre-tokenizers may glue it to what follows
)


def safe_cuts(encoder: Encoder, sample_texts: Sequence[str]) -> str | None:
    """The expression that matches where long texts may be cut, proved on a sample: the pieces' ids are the whole text's. None: nowhere.

    A tokenizer that marks the beginning of a text, such as SentencePiece with its leading space, allows none.
    """
    proved = [cut for cut in CUTS if _changes_nothing(encoder, cut, sample_texts)]
    return "|".join(proved) or None


def _changes_nothing(encoder: Encoder, cut: str, texts: Sequence[str]) -> bool:
    cuttable = [t for t in texts if re.search(cut, t)]
    if not cuttable:
        return False
    whole, _ = encoder.encode_batch(cuttable)
    pieces, _ = encoder.encode_batch([piece for text in cuttable for piece in re.split(cut, text)])
    return bool(np.array_equal(whole, pieces))


def in_pieces(text: str, cuts: str | None, characters: int = LONG_CHARACTERS) -> Iterator[str]:
    """The text in order, in pieces of at least so many characters where it may be cut."""
    start = 0
    border = re.compile(cuts) if cuts else None
    while border and len(text) - start > characters:
        found = border.search(text, start + characters)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:] if start else text
