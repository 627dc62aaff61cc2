"""Bits per byte of a run's texts, as its objective has them, and what they are in words."""

from collections.abc import Sequence
from typing import Any

from zhlm.config.schema import RunConfig
from zhlm.inference.bits import Measure, StreamScore, measure
from zhlm.inference.bits_masked import MASKED_PER_DOCUMENT, measure_masked
from zhlm.inference.bits_pieces import read
from zhlm.inference.bits_prefix import measure_continuation, prefix_share
from zhlm.inference.bits_spans import measure_targets
from zhlm.objectives.choose import objective_of

MEASURES: dict[str, Measure] = {
    "causal": "causal",
    "prefix": "continuation",
    "span_corruption": "targets",
    "masked": "pseudo_likelihood",
}
"""By objective."""


def measure_of(config: RunConfig) -> Measure:
    return MEASURES[config.objective.name]


def continues(config: RunConfig) -> bool:
    """Whether the run's models go on from a prompt."""
    return config.objective.name in ("causal", "prefix")


def in_words(config: RunConfig) -> str:
    """What bits per byte are of, behind `bits per byte`."""
    objective = config.objective
    if objective.name == "prefix":
        return f"of what follows a prefix of {prefix_share(objective):.0%}"
    return {"causal": "", "span_corruption": "of what the spans hide", "masked": "by pseudo-likelihood"}[objective.name]


def explained(config: RunConfig) -> str:
    """What a reader of the report must know of the measure."""
    start, end = config.pack.document_start == "bos", config.pack.document_end == "eos"
    last = " The cost of ending a document is included." if end else ""
    comparable = " Unlike perplexity it can be compared between vocabularies."
    objective = config.objective
    if objective.name == "prefix":
        return (
            f"how many bits the model needs to write down what follows the first {prefix_share(objective):.0%} of a text, which it sees in "
            f"both directions, divided by the bytes of that rest in UTF-8.{comparable}{last}"
        )
    if objective.name == "span_corruption":
        return (
            f"how many bits the model needs to write down the spans that it does not see, {objective.noise_share:.0%} of a text, divided "
            "by their bytes in UTF-8. Where each span ends is included. The spans are drawn once, by the seed of the run."
        )
    if objective.name == "masked":
        return (
            "pseudo-likelihood: how many bits each token costs, guessed from all others of its text, divided by the bytes of the text in "
            f"UTF-8. At most {MASKED_PER_DOCUMENT} tokens of a document are masked, one at a time, and stand for all of its tokens. It "
            "compares masked models with each other, not with models that write. Accuracy: how often the likeliest token is the right one, "
            f"when texts are masked as in training ({objective.mask_share:.0%} of the tokens)."
        )
    first = "" if start else " Nothing predicts the first characters of a document, so they are left out of both sides."
    return f"how many bits the model needs to write down a text, divided by the bytes of the text in UTF-8.{comparable}{first}{last}"


def score(config: RunConfig, model: Any, tokenizer: Any, texts: Sequence[str]) -> StreamScore:
    """Raises: BaseModelError when the tokenizer lacks a token that the run needs, RunError when the texts hold nothing to predict."""
    pack = config.pack
    ends = {"document_start": pack.document_start, "document_end": pack.document_end}
    if config.objective.name == "causal":
        return measure(model, tokenizer, texts, **ends, block_tokens=pack.block_tokens, device=model.device)
    objective, reading = objective_of(config, tokenizer, model.config), read(tokenizer, texts, **ends)
    ways: dict[str, Any] = {"prefix": measure_continuation, "span_corruption": measure_targets, "masked": measure_masked}
    found: StreamScore = ways[config.objective.name](model, reading, objective, pack.block_tokens)
    return found
