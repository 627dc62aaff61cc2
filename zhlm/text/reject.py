"""Which texts are not worth training on: keep, or drop with a named reason. Lengths count characters, because Chinese has no spaces."""

import math
import re
import unicodedata
from functools import lru_cache
from typing import Literal, get_args

from zhlm.config.schema import CleanConfig

Reason = Literal["empty", "too_short", "too_long", "low_han_share", "repeated_lines", "repeated_ngrams", "broken_encoding", "boilerplate"]
REASONS: tuple[Reason, ...] = get_args(Reason)
Role = Literal["new", "old"]

NGRAM_CHARS = 10
NGRAM_LEAST_CHARS = 400
"""Shorter texts are not searched for repeated n-grams: a poem or a list may repeat a phrase, and it costs more per character."""
_PROBES = 8

# The Unicode script Han: radicals, the iteration mark and zero, numerals, and all ideographs with their extensions and compatibility forms.
HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f"
_HAN = re.compile(f"[{HAN}]+")
_SPACE = re.compile(r"\s+")

# UTF-8 read as Latin-1 or Windows-1252: a lead byte shows as a letter, what follows as controls, signs or typographic marks.
_FOLLOWING = "[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]"
# UTF-8 read as GBK: Chinese commas, full stops, quotation marks and the commonest character turn into these, which Chinese hardly uses;
# the first is what a doubly broken U+FFFD becomes. Two bytes a character, so what follows a mark is broken as well.
_GBK_MARKS = "锟锛銆鐨鈥锘"
MOJIBAKE_STARTS = f"\u00c2\u00c3\u00e2-\u00ef{_GBK_MARKS}"
# The class in front makes the search fast; which of the three it was, is asked after.
_MOJIBAKE = re.compile(
    f"[{MOJIBAKE_STARTS}](?:(?<=[\u00e2-\u00ef]){_FOLLOWING}{{2}}|(?<=[\u00c2\u00c3]){_FOLLOWING}|(?<=[{_GBK_MARKS}]).{{0,2}})"
)


JUDGED_CHARS = 1_000_000
"""Repetition is looked for in so much of a text's beginning: it takes many times the memory of what is looked at."""


def rejection(text: str, clean: CleanConfig, role: Role) -> Reason | None:
    """Why a (normalised) text is dropped; None to keep it. The cheap tests come first. The Han share is asked of the new language only."""
    if not text or text.isspace():
        return "empty"
    if len(text) < clean.min_chars:
        return "too_short"
    if len(text) > clean.max_chars:
        return "too_long"
    if role == "new" and clean.min_han_share > 0 and han_share(text) < clean.min_han_share:
        return "low_han_share"
    text = text[:JUDGED_CHARS]
    if clean.max_repeated_line_share < 1 and text.count("\n") > 1 and repeated_line_share(text) > clean.max_repeated_line_share:
        return "repeated_lines"
    limit = clean.max_repeated_ngram_share
    if limit < 1 and len(text) >= NGRAM_LEAST_CHARS and _seems_repetitive(text, limit) and repeated_ngram_share(text, limit) > limit:
        return "repeated_ngrams"
    return None


def han_share(text: str) -> float:
    """Han characters among those that are not spaces; 0 for no text. Punctuation, Latin letters and digits are not Han."""
    dense = _SPACE.sub("", text)
    return 1 - len(_HAN.sub("", dense)) / len(dense) if dense else 0.0


def repeated_line_share(text: str) -> float:
    """Characters of lines that repeat an earlier one, among those of all lines; 0 for no line.

    By characters and not by lines, because code and lists repeat short lines and blank ones.

    Source: Rae et al. 2021, "Scaling Language Models" (Gopher), table A1, duplicate line character fraction.
    """
    lines = text.split("\n")
    total = len(text) - len(lines) + 1
    return 1 - sum(map(len, set(lines))) / total if total else 0.0


def repeated_ngram_share(text: str, limit: float = 0.0) -> float:
    """Characters in n-grams of 10 characters that occurred before, among all; a character counts once however many n-grams hold it.

    With a limit, stops as soon as it is out of reach, with what was found so far: prose is through after a tenth of its length.

    Source: as above, duplicate n-gram character fraction, for 5- to 10-grams of words; 10 characters are about 6 Chinese words.
    """
    seen: set[str] = set()
    repeated = covered = fresh = 0  # characters before `covered` were counted
    most_fresh = (1 - limit) * len(text)
    for start in range(len(text) - NGRAM_CHARS + 1):
        ngram = text[start : start + NGRAM_CHARS]
        if ngram in seen:
            repeated += start + NGRAM_CHARS - max(start, covered)
            covered = start + NGRAM_CHARS
        else:
            seen.add(ngram)
            if start >= covered:  # no later n-gram can cover this character
                fresh += 1
                if fresh > most_fresh:
                    break
    return repeated / len(text) if text else 0.0


def _seems_repetitive(text: str, limit: float) -> bool:
    """Whether enough of eight n-grams, taken at equal distances, occur twice: two thirds of what would be expected at the limit.

    Most prose is through after four searches; of texts at the default limit, one in 200 is missed.
    """
    step, wanted = len(text) // (_PROBES + 1), max(1, math.ceil(_PROBES * limit * 2 / 3))
    misses = 0
    for start in range(step, step * _PROBES + 1, step):
        ngram = text[start : start + NGRAM_CHARS]
        misses += text.find(ngram) == start and text.find(ngram, start + 1) < 0
        if misses > _PROBES - wanted:
            return False
    return True


def broken_share(text: str) -> float:
    """Characters that a wrong decoder left, among all: U+FFFD, private-use and unassigned ones, halves of pairs, and mojibake.

    Of a text as it was read: normalising removes some of them.
    """
    if text.isascii():
        return 0.0
    broken = len(_broken_characters().findall(text)) + sum(map(len, _MOJIBAKE.findall(text)))
    return broken / len(text)


@lru_cache(maxsize=1)
def broken_characters() -> str:
    """What can stand in a regular expression's [] for characters that no sound text has: unassigned, private, lone halves, U+FFFD.

    Few ranges beyond the first plane, where an expression tries them one by one; what is unassigned there may be a new emoji anyway.
    """
    codes = [c for c in range(0x10000) if unicodedata.category(chr(c)) in ("Cn", "Co", "Cs") or c == 0xFFFD]
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges) + "\U000f0000-\U0010ffff"


@lru_cache(maxsize=1)
def _broken_characters() -> re.Pattern[str]:
    return re.compile(f"[{broken_characters()}]")
