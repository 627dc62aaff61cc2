"""Texts parse back into the one derivation that made them, and the exact entropy agrees with a sample's."""

import math
import random
import statistics
from collections.abc import Iterator

import pytest

from zhlm.sample.entropy import exact_entropy, joint
from zhlm.sample.grammar import (
    ABSENT,
    CHOICES,
    LANGUAGES,
    SENTENCES,
    WORDS,
    Derivation,
    Language,
    Part,
    information_bits,
    options_of,
    pattern_parts,
    sample,
    write,
)


def _matches(parts: tuple[Part, ...], text: str, values: Derivation, language: Language) -> Iterator[Derivation]:
    """Every way in which a pattern makes exactly this text without contradicting the values known so far."""
    if not parts:
        if not text:
            yield values
        return
    part, rest = parts[0], parts[1:]
    if isinstance(part, str):
        if text.startswith(part):
            yield from _matches(rest, text[len(part) :], values, language)
        return
    for value, word in WORDS[language][part.table].items():
        if text.startswith(word) and values.get(part.choice, value) == value:
            yield from _matches(rest, text[len(word) :], values | {part.choice: value}, language)


def _readings(texts: list[str], language: Language, values: Derivation, at: int = 0) -> Iterator[Derivation]:
    """Every assignment of forms and words that writes these sentences."""
    if at == len(SENTENCES):
        if not texts:
            yield values
        return
    sentence = SENTENCES[at]
    yield from _readings(texts, language, values | {sentence.form: ABSENT}, at + 1)
    for form, pattern in enumerate(sentence.patterns[language] if texts else ()):
        for found in _matches(pattern_parts(pattern), texts[0], values, language):
            yield from _readings(texts[1:], language, found | {sentence.form: form}, at + 1)


def _derivations(seen: Derivation) -> Iterator[Derivation]:
    """Every derivation with positive probability that agrees with what a text shows."""
    partial: list[Derivation] = [{}]
    for choice in CHOICES:
        partial = [
            known | {choice.name: value}
            for known in partial
            for value in options_of(choice, tuple(known[p] for p in choice.parents))
            if seen.get(choice.name, value) == value and _shown(seen, choice.name, value)
        ]
    yield from partial


def _shown(seen: Derivation, name: str, value: object) -> bool:
    """The plot is seen in which sentences there are."""
    if name != "plot":
        return True
    extras = {s.name for s in SENTENCES if s.name in ("share", "change", "visit", "meal", "give")}
    return set(str(value).split("+")) - {""} == {e for e in extras if seen[f"{e}_form"] != ABSENT}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_has_one_derivation(language: Language) -> None:
    rng = random.Random(3)
    for _ in range(300):
        derivation = sample(rng)
        text = write(derivation, language)
        stop = "." if language == "en" else "。"
        sentences = [s.strip() + stop for s in text.split(stop) if s.strip()]
        found = [d for seen in _readings(sentences, language, {}) for d in _derivations(seen)]
        assert found == [derivation], text


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_of_a_table_differ_and_hold_no_full_stop(language: Language) -> None:
    for table, words in WORDS[language].items():
        assert len(set(words.values())) == len(words) or table in ("take", "unit"), table
        assert not any("." in w or "。" in w for w in words.values()), table


def test_distributions_sum_to_one() -> None:
    for choice in CHOICES:
        for values in joint(choice.parents):
            assert math.isclose(sum(options_of(choice, values).values()), 1.0), choice.name


@pytest.mark.parametrize("language", LANGUAGES)
def test_exact_entropy_agrees_with_a_sample(language: Language) -> None:
    rng = random.Random(5)
    derivations = [sample(rng) for _ in range(10_000)]
    texts = [write(d, language) for d in derivations]
    exact = exact_entropy(language)
    for value, measured in (
        (exact.bits_per_document, [information_bits(d) for d in derivations]),
        (exact.characters_per_document, [float(len(t)) for t in texts]),
        (exact.bytes_per_document, [float(len(t.encode("utf-8"))) for t in texts]),
    ):
        error = statistics.stdev(measured) / math.sqrt(len(measured))
        assert abs(statistics.mean(measured) - value) < 4 * error
    assert len(set(texts)) == len(texts)


def test_joint_of_dependent_choices() -> None:
    table = joint(("season", "weather"))
    assert math.isclose(sum(table.values()), 1.0)
    assert math.isclose(table["spring", "rain was falling"], 1 / 16)
    assert ("summer", "snow was falling") not in table


def test_stories_agree_across_sentences() -> None:
    rng = random.Random(8)
    for _ in range(500):
        story = sample(rng)
        assert story["total"] == int(story["bought"]) + int(story["added"])
        assert story["left"] == int(story["total"]) - int(story["given"])
        assert int(story["left"]) >= 2
        assert story["hero"] != story["companion"]
        text = write(story, "zh")
        assert text.count("她" if story["she"] == "she" else "他") >= 1
        assert 5 <= text.count("。") <= 8


def test_the_chinese_of_the_sample_is_rich() -> None:
    rng = random.Random(1)
    characters = {c for _ in range(3000) for c in write(sample(rng), "zh")}
    assert len(characters) > 500
