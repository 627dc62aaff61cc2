"""A quick look at many texts at once: which of them can cleaning change, which can it reject? Wrong only towards yes.

One string for all and one class per character, looked up with numpy: testing text by text, the calls alone would cost three times as much.
Shape letters: N texts, C characters of all together, a line feed before, between and after them.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zhlm.config.schema import CleanConfig
from zhlm.text.boilerplate import boilerplate_places
from zhlm.text.reject import HAN, MOJIBAKE_STARTS, NGRAM_LEAST_CHARS, Role, broken_characters

SCREEN_CHARACTERS = 1 << 18
"""Looked at in one go; as many as stay in the processor's cache."""

Flags = npt.NDArray[np.bool_]
Classes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]


class Screen(NamedTuple):
    """A text that none of these names comes out of cleaning as it is, boilerplate aside, and is kept."""

    characters_N: Flags
    """Holds characters that are normalised, or that a wrong decoder may have left."""
    spaces_N: Flags
    """Holds doubled or trailing spaces, or many blank lines."""
    judge_N: Flags
    """May be rejected for its length or its repetitions."""
    little_han_N: Flags
    """Has a Han share below the limit; spaces do not count, so tidying them changes nothing."""


# Classes of characters, as bits.
_ODD, _BLANK, _TAB, _BREAK, _HAN, _SPACE = 1, 2, 4, 8, 16, 32


def screen(texts: Sequence[str], config: CleanConfig, role: Role) -> Screen:
    """Which texts to look at closely; stripped ones, if the config normalises."""
    lengths_N = np.fromiter(map(len, texts), np.int64, len(texts))
    joined = "\n".join(["", *texts, ""])
    classes_C = _classes().take(np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4"))
    starts_N = np.cumsum(lengths_N + 1) - lengths_N
    line_ends_C = (classes_C & _BREAK) > 0

    def holding(found_C: Flags) -> Flags:
        flags_N = np.zeros(len(texts), np.bool_)
        texts_of = np.searchsorted(starts_N, np.flatnonzero(found_C), "right") - 1
        flags_N[texts_of[texts_of >= 0]] = True
        return flags_N

    judge_N = (lengths_N < max(config.min_chars, 1)) | (lengths_N > config.max_chars) | ((classes_C[starts_N] & _SPACE) > 0)
    if config.max_repeated_line_share < 1:
        breaks = np.flatnonzero(line_ends_C)
        judge_N |= np.searchsorted(breaks, starts_N + lengths_N) - np.searchsorted(breaks, starts_N) > 1
    if config.max_repeated_ngram_share < 1:
        judge_N |= lengths_N >= NGRAM_LEAST_CHARS
    none_N = np.zeros(len(texts), np.bool_)
    asks_han = role == "new" and config.min_han_share > 0
    return Screen(
        characters_N=holding((classes_C & _ODD) > 0),
        spaces_N=holding(_untidy(classes_C, line_ends_C)) if config.normalise else none_N,
        judge_N=judge_N,
        little_han_N=_little_han(classes_C, starts_N, lengths_N, config.min_han_share) if asks_han else none_N,
    )


def with_boilerplate(texts: Sequence[str]) -> list[int]:
    """The places of the texts that may have boilerplate lines."""
    joined = "\n".join(["", *texts, ""])
    # A line's place may be the line feed before it, which belongs to the text before; so one further.
    places = np.array(boilerplate_places(joined), np.int64) + 1
    if not len(places):
        return []
    lengths_N = np.fromiter(map(len, texts), np.int64, len(texts))
    texts_of = np.searchsorted(np.cumsum(lengths_N + 1) - lengths_N, places, "right") - 1
    return sorted(set(map(int, texts_of)))


def _untidy(classes_C: Classes, line_ends_C: Flags) -> Flags:
    """Where spaces are trailing, or doubled where no line is indented, or four line feeds follow each other."""
    blank = (classes_C & _BLANK) > 0
    found = np.zeros(len(classes_C), np.bool_)
    found[:-1] = ((classes_C[:-1] & (_BLANK | _TAB)) > 0) & line_ends_C[1:]
    found[1:-1] |= blank[1:-1] & blank[2:] & ~(blank | line_ends_C)[:-2]
    pairs = line_ends_C[:-1] & line_ends_C[1:]
    found[:-3] |= pairs[:-2] & pairs[2:]
    return found


def _little_han(classes_C: Classes, starts_N: Places, lengths_N: Places, least: float) -> Flags:
    def count_of(bit: int) -> Places:
        before: Places = np.cumsum((classes_C & bit) > 0, dtype=np.int64)  # a line feed stands before the first text
        counts: Places = before[starts_N + lengths_N - 1] - before[starts_N - 1]
        return counts

    return count_of(_HAN) < (least + 1e-9) * (lengths_N - count_of(_SPACE))


@lru_cache(maxsize=1)
def _classes() -> Classes:
    """The class of every code point; a tenth of a second to make, once per process."""
    classes = np.zeros(0x110000, np.uint8)
    decomposed = [unicodedata.decomposition(chr(c)).split() for c in range(0x30000)]
    # What can join the character before it: whatever comes second in a composition, and Hangul vowels and finals.
    joining = {int(d[1], 16) for d in decomposed if len(d) == 2 and "<" not in d[0]} | {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}
    for code in range(0x80, 0x40000):
        character = chr(code)
        if code in joining or unicodedata.combining(character) or not unicodedata.is_normalized("NFC", character):
            classes[code] = _ODD
    every = "".join(map(chr, range(0x110000)))
    removed = "\x00-\x08\x0b-\x1f\x7f-\xa0\u2028\u2029\ud800-\udfff\ufeff\ufffd-\uffff"
    ranges = {_ODD: removed + broken_characters() + MOJIBAKE_STARTS, _BLANK: " ", _TAB: "\t", _BREAK: "\n", _HAN: HAN, _SPACE: r"\s"}
    for bit, characters in ranges.items():
        for match in re.finditer(f"[{characters}]+", every):
            classes[match.start() : match.end()] |= bit
    return classes
