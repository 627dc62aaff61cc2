"""Texts side by side in a terminal, where a Chinese character is two cells wide and may end a line almost anywhere."""

import re
import unicodedata
from collections.abc import Iterator, Mapping

GAP = " | "
LEAST_CELLS = 30
"""Of a column; narrower terminals show the texts one below the other."""
NO_LINE_START = frozenset("，。、；：！？）》」』】〉”\u2019…,.;:!?)]}%")
NO_LINE_END = frozenset("（《「『【〈“\u2018([{")


def cells(text: str) -> int:
    """Terminal cells that a text takes."""
    return sum(_cells_of(c) for c in text)


def _cells_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cc", "Cf", "Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells: broken at spaces and between wide characters, never before closing punctuation."""
    return [line for part in (text.splitlines() or [""]) for line in _wrap_line(_printable(part), width)]


def _printable(text: str) -> str:
    """Control characters would move the cursor or recolour the terminal, and models do write them."""
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" else c for c in text.replace("\t", " "))


def _wrap_line(text: str, width: int) -> Iterator[str]:
    line = ""
    for unit in _units(text):
        if line and cells(line) + cells(unit.rstrip()) > width:
            yield line.rstrip()
            line, unit = "", unit.lstrip()
        while cells(unit.rstrip()) > width:  # a word longer than the line
            head = _head(unit, width)
            yield head
            unit = unit[len(head) :]
        line += unit
    yield line.rstrip()


def _units(text: str) -> Iterator[str]:
    """What must not be torn: a word or one wide character, with the closing punctuation and spaces behind it."""
    unit = ""
    for piece in re.findall(r"\s+|[^\s\u1100-\uffff\U00010000-\U0010ffff]+|.", text):
        if unit and not piece.isspace() and piece[0] not in NO_LINE_START and unit[-1] not in NO_LINE_END:
            yield unit
            unit = ""
        unit += piece
    if unit:
        yield unit


def _head(text: str, width: int) -> str:
    """The longest start that fits, at least one character."""
    end = 1
    while end < len(text) and cells(text[: end + 1]) <= width:
        end += 1
    return text[:end]


def side_by_side(texts: Mapping[str, str], width: int) -> list[str]:
    """Titled columns of equal width, as lines; one below the other where the terminal is too narrow."""
    column = (width - len(GAP) * (len(texts) - 1)) // len(texts)
    if column < LEAST_CELLS:
        return [line for title, text in texts.items() for line in (title, *(f"  {part}" for part in wrap(text, max(width - 2, 8))))]
    columns = [[title, "-" * column, *wrap(text, column)] for title, text in texts.items()]
    height = max(len(c) for c in columns)
    rows = zip(*(c + [""] * (height - len(c)) for c in columns), strict=True)
    return [GAP.join(part + " " * (column - cells(part)) for part in row).rstrip() for row in rows]
