"""Cleaning, the one way in: a text or a batch of them comes in; the cleaned texts, each with the reason to drop it or None, go out."""

import re
from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from opencc import OpenCC

from zhlm.config.schema import CleanConfig
from zhlm.text.boilerplate import without_boilerplate
from zhlm.text.normalise import EDGES, normalise, normalise_spaces
from zhlm.text.reject import Reason, Role, broken_share, rejection
from zhlm.text.screen import SCREEN_CHARACTERS, screen, with_boilerplate

LONG_CHARACTERS = 4_000_000
Needs = npt.NDArray[np.uint8]
_BETWEEN_LINES = re.compile(r"(?<=\S)\n(?=\S)")


class Need(IntEnum):
    """What it takes to clean a text a second time."""

    NOTHING = 0
    """It is kept as it is."""
    SPACES = 1
    """It is kept, with its spaces tidied."""
    ALL = 2


class Cleaned(NamedTuple):
    """A batch after cleaning, N texts."""

    texts: list[str]
    reasons: list[Reason | None]
    """Why each is dropped; None to keep it."""
    needs_N: Needs


def clean(text: str, config: CleanConfig, role: Role) -> tuple[str, Reason | None]:
    """The cleaned text, and why it is dropped; None to keep it."""
    if config.normalise and len(text) <= LONG_CHARACTERS:
        text = text.strip(EDGES)
    if config.max_broken_share < 1 and broken_share(text) > config.max_broken_share:
        return text, "broken_encoding"
    if len(text) <= LONG_CHARACTERS:
        text, reason = _tidied(text, config)
        return text, reason or rejection(text, config, role)
    text = _tidied_by_stretches(text, config)
    return text, rejection(text, config, role)


def _tidied(text: str, config: CleanConfig) -> tuple[str, Reason | None]:
    if config.normalise:
        text = normalise(text)
    if config.to_simplified:
        text = _simplifier().convert(text)
    return _without_boilerplate(text, config)


def _tidied_by_stretches(text: str, config: CleanConfig) -> str:
    """A stretch at a time, and UTF-8 in between: a single rare character makes every character of a string four bytes long."""
    collected = bytearray()
    for stretch in _stretches(text):
        tidied, reason = _tidied(stretch, config)
        if tidied and reason is None:
            collected += b"\n" * bool(collected) + tidied.encode("utf-8", "surrogatepass")
    return collected.decode("utf-8", "surrogatepass")


def _stretches(text: str) -> Iterator[str]:
    """A long text cut between two lines that are not blank, without the line feed between them."""
    start = 0
    while len(text) - start > LONG_CHARACTERS and (found := _BETWEEN_LINES.search(text, start + LONG_CHARACTERS)):
        yield text[start : found.start()]
        start = found.end()
    yield text[start:]


def clean_batch(texts: Sequence[str], config: CleanConfig, role: Role) -> Cleaned:
    """`clean` of every text, faster: most texts need nothing, and that is seen for thousands of them at once."""
    if _only_lengths(config, role):
        least, most = max(1, config.min_chars), config.max_chars
        lengths_N = np.fromiter(map(len, texts), np.int64, len(texts))
        blank_N = np.fromiter(map(str.isspace, texts), np.bool_, len(texts))
        dropped_N = (lengths_N < least) | (lengths_N > most) | blank_N
        reasons = list[Reason | None]([None]) * len(texts)
        for at in np.flatnonzero(dropped_N).tolist():
            reasons[at] = rejection(texts[at], config, role)
        return Cleaned(list(texts), reasons, np.where(dropped_N, Need.ALL, Need.NOTHING).astype(np.uint8))
    portions: list[Cleaned] = []
    portion: list[str] = []
    characters = 0
    for text in texts:
        if characters + len(text) > SCREEN_CHARACTERS and portion:
            portions.append(_clean_portion(portion, config, role))
            portion, characters = [], 0
        portion.append(text)
        characters += len(text)
    portions.append(_clean_portion(portion, config, role))
    needs = np.concatenate([p.needs_N for p in portions])
    return Cleaned([text for p in portions for text in p.texts], [reason for p in portions for reason in p.reasons], needs)


def clean_again(texts: Sequence[str], needs_N: Needs, config: CleanConfig, role: Role) -> tuple[list[str], list[Reason | None]]:
    """What `clean_batch` made of the same texts when it found what each needs."""
    cleaned, reasons = list(texts), list[Reason | None]([None]) * len(texts)
    for at in np.flatnonzero(needs_N == Need.SPACES).tolist():
        cleaned[at] = normalise_spaces(texts[at].strip(EDGES))
    others = np.flatnonzero(needs_N == Need.ALL).tolist()
    again = clean_batch([texts[at] for at in others], config, role)
    for at, text, reason in zip(others, again.texts, again.reasons, strict=True):
        cleaned[at], reasons[at] = text, reason
    return cleaned, reasons


def _only_lengths(config: CleanConfig, role: Role) -> bool:
    """Whether the config asks for nothing else."""
    tidies = config.normalise or config.to_simplified or config.boilerplate
    limits = (config.max_broken_share, config.max_repeated_line_share, config.max_repeated_ngram_share)
    return not tidies and min(limits) >= 1 and (role == "old" or config.min_han_share == 0)


def _clean_portion(texts: Sequence[str], config: CleanConfig, role: Role) -> Cleaned:
    if config.to_simplified or sum(map(len, texts)) > SCREEN_CHARACTERS:  # the latter is a single text, looked at without numpy
        each = [clean(text, config, role) for text in texts]
        same = [one is text and reason is None for text, (one, reason) in zip(texts, each, strict=True)]
        return Cleaned([one for one, _ in each], [reason for _, reason in each], np.where(same, Need.NOTHING, Need.ALL).astype(np.uint8))
    left = [text.strip(EDGES) for text in texts] if config.normalise else list(texts)
    found: dict[int, Reason | None] = {}
    screened = screen(left, config, role)
    judge_N = screened.judge_N | screened.spaces_N | screened.little_han_N
    for at in np.flatnonzero(screened.spaces_N & ~screened.characters_N).tolist():
        left[at] = normalise_spaces(left[at])
    needs_N = np.array([new is not text for new, text in zip(left, texts, strict=True)], np.uint8) * np.uint8(Need.SPACES)
    for at in np.flatnonzero(screened.characters_N).tolist():
        left[at], found[at] = clean(left[at], config, role)
        needs_N[at] = Need.NOTHING if left[at] is texts[at] else Need.ALL
    for at in with_boilerplate(left) if config.boilerplate else []:
        if at not in found:
            before = left[at]
            left[at], reason = _without_boilerplate(before, config)
            found[at] = reason or rejection(left[at], config, role)
            needs_N[at] = needs_N[at] if left[at] is before else Need.ALL
    for at in np.flatnonzero(judge_N).tolist():
        if at not in found:  # a Han share that is high enough need not be counted again
            found[at] = rejection(left[at], config, role if screened.little_han_N[at] else "old")
    needs_N[[at for at, reason in found.items() if reason is not None]] = Need.ALL
    return Cleaned(left, [found.get(at) for at in range(len(left))], needs_N)


def _without_boilerplate(text: str, config: CleanConfig) -> tuple[str, Reason | None]:
    left = without_boilerplate(text) if config.boilerplate else text
    if left == text:
        return text, None
    if not left or left.isspace():
        return text, "boilerplate"
    return normalise(left) if config.normalise else left, None


@lru_cache(maxsize=1)
def _simplifier() -> OpenCC:
    """Traditional to simplified, by words where characters are ambiguous.

    Japanese new forms are not traditional Chinese and stay, but old forms in Japanese text become simplified Chinese.
    """
    return OpenCC("t2s")
