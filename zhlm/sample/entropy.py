"""How much a story tells, exactly: bits per document, per character and per byte of UTF-8, summed from the grammar, not sampled.

A derivation's probability is a product over choices, so its entropy is the sum of each choice's entropy given its parents, weighed by how
probable the parents' values are; and a text is a row of words, so its expected length is the sum of their expected lengths. Both need
only the joint distribution of a few choices at a time, which `joint` sums up from their ancestors. Because no two derivations give
the same text, the entropy of the derivation is that of the text, its end included.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from zhlm.sample.grammar import ABSENT, CHOICES, SENTENCES, WORDS, Choice, Language, Sentence, Value, options_of, pattern_parts, separator


@dataclass(frozen=True)
class Entropy:
    """Of one language of the sample."""

    bits_per_document: float
    characters_per_document: float
    bytes_per_document: float

    @property
    def bits_per_character(self) -> float:
        return self.bits_per_document / self.characters_per_document

    @property
    def bits_per_byte(self) -> float:
        return self.bits_per_document / self.bytes_per_document


def exact_entropy(language: Language) -> Entropy:
    """Entropy and expected length of a document."""
    bits = sum(_choice_bits(choice) for choice in CHOICES)
    return Entropy(bits, _expected_length(language, len), _expected_length(language, lambda text: len(text.encode("utf-8"))))


@cache
def joint(names: tuple[str, ...]) -> dict[tuple[Value, ...], float]:
    """Probability of every combination of values of these choices, in the order given.

    Goes through the choices' ancestors in order and sums a choice out as soon as nothing below needs it, so tables stay small.
    """
    order = _ancestry(names)
    live: list[str] = []
    table: dict[tuple[Value, ...], float] = {(): 1.0}
    for done, choice in enumerate(order, start=1):
        needed = {p for later in order[done:] for p in later.parents} | set(names)
        kept = [n for n in live if n in needed]
        new = choice.name in needed
        stay, parents = [live.index(n) for n in kept], [live.index(p) for p in choice.parents]
        grown: defaultdict[tuple[Value, ...], float] = defaultdict(float)
        for values, weight in table.items():
            row = tuple(values[i] for i in stay)
            for value, probability in options_of(choice, tuple(values[i] for i in parents)).items():
                grown[(*row, value) if new else row] += weight * probability
        table, live = grown, [*kept, choice.name] if new else kept
    at = [live.index(name) for name in names]
    return {tuple(values[i] for i in at): weight for values, weight in table.items()}


def _ancestry(names: tuple[str, ...]) -> list[Choice]:
    """The choices, their parents, their parents' parents ..., parents first."""
    wanted = set(names)
    for choice in reversed(CHOICES):
        if choice.name in wanted:
            wanted.update(choice.parents)
    return [choice for choice in CHOICES if choice.name in wanted]


def _choice_bits(choice: Choice) -> float:
    def bits(values: tuple[Value, ...]) -> float:
        return -sum(p * math.log2(p) for p in options_of(choice, values).values())

    return sum(weight * bits(values) for values, weight in joint(choice.parents).items())


def _expected_length(language: Language, measure: Callable[[str], int]) -> float:
    later = SENTENCES[1:]  # the first one is in every story
    between = sum(weight for sentence in later for (form,), weight in joint((sentence.form,)).items() if form != ABSENT)
    return measure(separator(language)) * between + sum(_sentence_length(s, language, measure) for s in SENTENCES)


def _sentence_length(sentence: Sentence, language: Language, measure: Callable[[str], int]) -> float:
    total = 0.0
    for form, pattern in enumerate(sentence.patterns[language]):
        for part in pattern_parts(pattern):
            if isinstance(part, str):
                total += measure(part) * joint((sentence.form,)).get((form,), 0.0)
                continue
            words = WORDS[language][part.table]
            pairs = joint((sentence.form, part.choice)).items()
            total += sum(weight * measure(words[value]) for (shape, value), weight in pairs if shape == form)
    return total
