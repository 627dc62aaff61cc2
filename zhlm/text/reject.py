"""Which texts are not worth training on: keep, or drop with a named reason. Lengths count characters, because Chinese has no spaces."""

import re
from typing import Literal, get_args

from zhlm.config.schema import CleanConfig

Reason = Literal["empty", "too_short", "too_long", "low_han_share", "repeated_lines"]
REASONS: tuple[Reason, ...] = get_args(Reason)

# The Unicode script Han: radicals, the iteration mark and zero, numerals, and all ideographs with their extensions and compatibility forms.
_HAN = re.compile("[\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f]+")
_SPACE = re.compile(r"\s+")


def rejection(text: str, clean: CleanConfig, role: Literal["new", "old"]) -> Reason | None:
    """Why a (normalised) text is dropped; None to keep it. The Han share is asked of the new language only."""
    if not text or text.isspace():
        return "empty"
    if len(text) < clean.min_chars:
        return "too_short"
    if len(text) > clean.max_chars:
        return "too_long"
    if role == "new" and clean.min_han_share > 0 and han_share(text) < clean.min_han_share:
        return "low_han_share"
    if clean.max_repeated_share < 1 and repeated_share(text) > clean.max_repeated_share:
        return "repeated_lines"
    return None


def han_share(text: str) -> float:
    """Han characters among those that are not spaces; 0 for no text. Punctuation, Latin letters and digits are not Han."""
    dense = _SPACE.sub("", text)
    return 1 - len(_HAN.sub("", dense)) / len(dense) if dense else 0.0


def repeated_share(text: str) -> float:
    """Lines that repeat an earlier one, among the lines that are not blank; 0 for no line."""
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0
