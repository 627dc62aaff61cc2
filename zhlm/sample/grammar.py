"""One probabilistic grammar of small stories; English and Chinese differ in their words and sentence patterns only.

A derivation fixes a value for every choice below, each drawn given the values of its parents (a Bayesian network, so that entropies are
exact sums, see entropy.py). Every sentence has a choice for its form, which picks one of its patterns or leaves the sentence out. A story
is worth learning because its sentences agree: names come back, pronouns follow the names, measure words the things, things the place,
clothes and deeds the weather, dishes the season; counts add up and the clock only moves on.

Two derivations never give the same text: sentences end in a full stop that occurs nowhere else, no two patterns make the same sentence,
and each choice that is not settled by its parents is written out in some sentence (a test parses texts back and finds one derivation).
"""

import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, combinations
from typing import Literal

from zhlm.sample import lexicon

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
Value = str | int
Derivation = dict[str, Value]
ABSENT = ""
"""Value of the choices of a sentence that the story leaves out."""


def _rows(text: str) -> list[list[str]]:
    """Rows of a lexicon table; a row ends with a Chinese character."""
    return [" ".join(row.split()).split("|") for row in re.split(r"(?<=[^\x00-\x7f])[,\s]+", text.strip())]


def _keys(text: str) -> tuple[str, ...]:
    return tuple(row[0] for row in _rows(text))


def _keys_by(groups: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {name: _keys(text) for name, text in groups.items()}


_NAMES, _RELATIONS, _ITEMS = _keys_by(lexicon.NAMES), _keys_by(lexicon.RELATIONS), _keys_by(lexicon.PLACES)
_ACTIVITIES, _DISHES = _keys_by(lexicon.SIGHTS), _keys_by(lexicon.DISHES)
_WEATHER, _TIMES = _keys(lexicon.WEATHER), _keys(lexicon.TIMES)
_GEAR = {weather: tuple(row[1] for row in _rows(text)) for weather, text in zip(_WEATHER, lexicon.GEAR, strict=True)}
_SHELTERS = {weather: _keys(text) for weather, text in zip(_WEATHER, lexicon.SHELTERS, strict=True)}
_WEATHER_OF = {season: tuple(_WEATHER[i] for i in rows) for season, rows in lexicon.WEATHER_OF.items()}
_GENDER = {name: gender for gender, names in _NAMES.items() for name in names}
_EXTRAS = ("share", "change", "visit", "meal", "give")
_PLOTS = tuple("+".join(extras) for n in range(4) for extras in combinations(_EXTRAS, n))

Distribution = Mapping[Value, float]


def _uniform(*values: Value) -> Distribution:
    return {value: 1 / len(values) for value in values}


@dataclass(frozen=True)
class Choice:
    """A random variable of the story: its distribution given the values of its parents."""

    name: str
    parents: tuple[str, ...]
    options: Callable[..., Distribution]


def _free(name: str, table: str) -> Choice:
    keys = _keys(table)
    return Choice(name, (), lambda: _uniform(*keys))


def _given(name: str, parent: str, groups: Mapping[str, tuple[str, ...]]) -> Choice:
    """A choice among the group that its parent's value names; absent with its parent."""
    return Choice(name, (parent,), lambda value: _uniform(*groups[value]) if value != ABSENT else _uniform(ABSENT))


def _extra(name: str, form: str, table: str) -> Choice:
    """A free choice of a sentence that may be absent."""
    keys = _keys(table)
    return Choice(name, (form,), lambda value: _uniform(*keys) if value != ABSENT else _uniform(ABSENT))


def _form(name: str, num_forms: int) -> Choice:
    return Choice(f"{name}_form", (), lambda: _uniform(*range(num_forms)))


def _extra_form(name: str, num_forms: int) -> Choice:
    return Choice(f"{name}_form", ("plot",), lambda plot: _uniform(*range(num_forms)) if name in plot.split("+") else _uniform(ABSENT))


def _companions(relation: str, hero: str) -> Distribution:
    genders = [gender for gender, relations in _RELATIONS.items() if relation in relations]
    names = [name for gender in ("f", "m") if genders[0] in (gender, "any") for name in _NAMES[gender] if name != hero]
    return _uniform(*names)


def _pronoun(*names: str) -> Distribution:
    return _uniform("she" if all(_GENDER[name] == "f" for name in names) else "he")


def _later(time: Value, earliest: int, latest: int) -> Distribution:
    """A time of day after `time`, within the given rows of the table."""
    after = _TIMES.index(str(time)) + 1
    return _uniform(*_TIMES[max(after, earliest) : latest + 1])


def _clock(form: Value, now: Value, latest: int) -> Distribution:
    return _later(now, 1, latest) if form != ABSENT else _uniform(now)


def _next_weather(form: Value, season: Value, weather: Value) -> Distribution:
    return _uniform(*(w for w in _WEATHER_OF[str(season)] if w != weather)) if form != ABSENT else _uniform(ABSENT)


CHOICES: tuple[Choice, ...] = (
    Choice("plot", (), lambda: _uniform(*_PLOTS)),
    # who
    _form("who", 3),
    Choice("hero", (), lambda: _uniform(*_NAMES["f"], *_NAMES["m"])),
    Choice("she", ("hero",), _pronoun),
    _free("family", lexicon.FAMILIES),
    _free("trait", lexicon.TRAITS),
    _free("job", lexicon.JOBS),
    _free("city", lexicon.CITIES),
    # go
    _form("go", 3),
    _free("day", lexicon.DAYS),
    Choice("go_time", (), lambda: _uniform(*_TIMES[:3])),
    Choice("relation", (), lambda: _uniform(*(r for group in _RELATIONS.values() for r in group))),
    Choice("companion", ("relation", "hero"), _companions),
    Choice("they", ("hero", "companion"), _pronoun),
    _free("transport", lexicon.TRANSPORT),
    _free("place_look", lexicon.PLACE_LOOKS),
    _free("place", lexicon.PLACE_NAMES),
    # weather
    _form("weather", 2),
    _free("season", lexicon.SEASONS),
    _given("weather", "season", _WEATHER_OF),
    _given("gear", "weather", _GEAR),
    _free("colour", lexicon.COLOURS),
    # buy
    _form("buy", 2),
    _given("item", "place", _ITEMS),
    Choice("bought", (), lambda: _uniform(*range(5, 10))),
    _free("item_look", lexicon.ITEM_LOOKS),
    _free("recipient", lexicon.RECIPIENTS),
    # share
    _extra_form("share", 2),
    Choice("added", ("share_form",), lambda form: _uniform(*range(2, 6)) if form != ABSENT else _uniform(0)),
    Choice("total", ("bought", "added"), lambda bought, added: _uniform(bought + added)),
    # change
    _extra_form("change", 2),
    Choice("change_time", ("change_form", "go_time"), lambda form, now: _clock(form, now, 3)),
    Choice("next_weather", ("change_form", "season", "weather"), _next_weather),
    _given("shelter", "next_weather", _SHELTERS),
    # visit
    _extra_form("visit", 2),
    Choice("visit_time", ("visit_form", "change_time"), lambda form, now: _clock(form, now, 4)),
    _extra("sight", "visit_form", lexicon.SIGHT_NAMES),
    _given("activity", "sight", _ACTIVITIES),
    _extra("manner", "visit_form", lexicon.MANNERS),
    # meal
    _extra_form("meal", 2),
    Choice("dish", ("meal_form", "season"), lambda form, season: _uniform(*_DISHES[season]) if form != ABSENT else _uniform(ABSENT)),
    _extra("drink", "meal_form", lexicon.DRINKS),
    # home
    _form("home", 3),
    Choice("home_time", ("visit_time",), lambda now: _later(now, 3, 5)),
    _free("mood", lexicon.MOODS),
    # give
    _extra_form("give", 2),
    Choice("given", ("give_form",), lambda form: _uniform(*range(1, 4)) if form != ABSENT else _uniform(0)),
    Choice("left", ("total", "given"), lambda total, given: _uniform(total - given)),
    _extra("reaction", "give_form", lexicon.REACTIONS),
)


@dataclass(frozen=True)
class Sentence:
    """Patterns of one sentence, by form; `{table:choice}` is the word of a choice's value, `{choice}` short for `{choice:choice}`."""

    name: str
    patterns: Mapping[Language, tuple[str, ...]]

    @property
    def form(self) -> str:
        return f"{self.name}_form"


SENTENCES: tuple[Sentence, ...] = tuple(
    Sentence(name, {language: lexicon.PATTERNS[language][name] for language in LANGUAGES}) for name in lexicon.PATTERNS["en"]
)


def _words() -> dict[Language, dict[str, dict[Value, str]]]:
    """Table -> value -> word, per language. Tables are named for their choice; `unit`, `take` and pronoun cases hang on another's value."""
    plain = {
        "hero": " ".join(lexicon.NAMES.values()), "family": lexicon.FAMILIES, "trait": lexicon.TRAITS, "job": lexicon.JOBS,
        "city": lexicon.CITIES, "day": lexicon.DAYS, "time": lexicon.TIMES, "relation": " ".join(lexicon.RELATIONS.values()),
        "transport": lexicon.TRANSPORT, "place_look": lexicon.PLACE_LOOKS, "place": lexicon.PLACE_NAMES,
        "season": lexicon.SEASONS, "weather": lexicon.WEATHER, "colour": lexicon.COLOURS, "item": " ".join(lexicon.PLACES.values()),
        "item_look": lexicon.ITEM_LOOKS, "recipient": lexicon.RECIPIENTS, "shelter": " ".join(lexicon.SHELTERS),
        "sight": lexicon.SIGHT_NAMES, "activity": " ".join(lexicon.SIGHTS.values()), "manner": lexicon.MANNERS,
        "dish": " ".join(lexicon.DISHES.values()), "drink": lexicon.DRINKS, "mood": lexicon.MOODS, "reaction": lexicon.REACTIONS,
    }  # fmt: skip
    words: dict[Language, dict[str, dict[Value, str]]] = {"en": {}, "zh": {}}
    for table, text in plain.items():
        for column, language in enumerate(LANGUAGES):
            words[language][table] = {row[0]: row[column] for row in _rows(text)}
    for column, language in enumerate(LANGUAGES):
        tables = words[language]
        gear = [row for text in lexicon.GEAR for row in _rows(text)]
        tables["take"] = {row[1]: row[2 * column] for row in gear}
        tables["gear"] = {row[1]: row[1 + 2 * column] for row in gear}
        tables["count"] = {number: row[column] for number, row in enumerate(_rows(lexicon.COUNTS), start=1)}
    words["zh"]["unit"] = {row[0]: row[2] for text in lexicon.PLACES.values() for row in _rows(text)}
    for language in LANGUAGES:
        words[language] |= {case: {"she": she, "he": he} for case, (she, he) in lexicon.PRONOUNS[language].items()}
    return words


WORDS = _words()


@dataclass(frozen=True)
class Slot:
    """A gap of a pattern: the word of `choice`'s value in `table`."""

    table: str
    choice: str


Part = str | Slot


@cache
def pattern_parts(pattern: str) -> tuple[Part, ...]:
    """A pattern as literal texts and slots, in order."""
    parts: list[Part] = []
    for literal, slot in re.findall(r"([^{]*)(?:\{([a-z_:A-Z]+)\})?", pattern):
        if literal:
            parts.append(literal)
        if slot:
            table, _, choice = slot.partition(":")
            parts.append(Slot(table, choice or table))
    return tuple(parts)


@cache
def options_of(choice: Choice, parent_values: tuple[Value, ...]) -> Distribution:
    """A choice's distribution given its parents' values; cached, because few combinations come up again and again."""
    return choice.options(*parent_values)


@cache
def _drawable(choice: Choice, parent_values: tuple[Value, ...]) -> tuple[tuple[Value, ...], tuple[float, ...]]:
    options = options_of(choice, parent_values)
    return tuple(options), tuple(accumulate(options.values()))


def sample(rng: random.Random) -> Derivation:
    """Draw a derivation."""
    values: Derivation = {}
    for choice in CHOICES:
        options, weights = _drawable(choice, tuple(values[p] for p in choice.parents))
        values[choice.name] = options[0] if len(options) == 1 else rng.choices(options, cum_weights=weights)[0]
    return values


def information_bits(derivation: Derivation) -> float:
    """-log2 of a derivation's probability."""
    return -sum(math.log2(options_of(c, tuple(derivation[p] for p in c.parents))[derivation[c.name]]) for c in CHOICES)


def separator(language: Language) -> str:
    """What stands between two sentences."""
    return " " if language == "en" else ""


def write(derivation: Derivation, language: Language) -> str:
    """The story as text: one line."""
    words, sentences = WORDS[language], []
    for sentence in SENTENCES:
        form = derivation[sentence.form]
        if form != ABSENT:
            parts = pattern_parts(sentence.patterns[language][int(form)])
            sentences.append("".join(p if isinstance(p, str) else words[p.table][derivation[p.choice]] for p in parts))
    return separator(language).join(sentences)
