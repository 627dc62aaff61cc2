"""What the model learns to predict: the next token, masked ones, whole spans, or the rest of a document."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from zhlm.config.section import Section, Share

InnerShare = Annotated[float, Field(gt=0.0, lt=1.0)]


class CausalConfig(Section):
    """Each token from those before it (GPT, BLOOM, Llama, Qwen)."""

    name: Literal["causal"] = "causal"


class MaskedConfig(Section):
    """Some tokens from all the others, on both sides (BERT, RoBERTa)."""

    name: Literal["masked"] = "masked"
    mask_share: InnerShare = 0.15
    """Share of a document's tokens to predict; special tokens are never among them."""
    mask_token_share: Share = 0.8
    """Share of those that the model sees as the mask token."""
    random_share: Share = 0.1
    """Share of those that it sees as a random token; the rest it sees as they are."""
    whole_words: bool = False
    """Mask the tokens of a word together; Chinese words are found by a word segmenter."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.mask_token_share + self.random_share > 1:
            raise ValueError(
                f"mask_token_share {self.mask_token_share} and random_share {self.random_share} exceed 1 together; lower one of them"
            )
        return self


class SpanCorruptionConfig(Section):
    """Spans of tokens, each replaced by one sentinel in what the encoder reads (T5, mT5)."""

    name: Literal["span_corruption"] = "span_corruption"
    noise_share: InnerShare = 0.15
    """Share of a document's tokens that are in the spans."""
    mean_span: Annotated[float, Field(ge=1.0)] = 3.0
    """Mean length of a span, in tokens."""


class PrefixConfig(Section):
    """The rest of a document from its prefix, which is seen in both directions (prefix language models; near to GLM)."""

    name: Literal["prefix"] = "prefix"
    min_share: Share = 0.1
    """Least share of a document that is its prefix; it is drawn anew for each document, uniformly."""
    max_share: Share = 0.9
    """Largest share."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_share > self.max_share:
            raise ValueError(f"min_share {self.min_share} exceeds max_share {self.max_share}; lower the first or raise the second")
        return self


BY_NAME: dict[str, type[Section]] = {
    "causal": CausalConfig,
    "masked": MaskedConfig,
    "span_corruption": SpanCorruptionConfig,
    "prefix": PrefixConfig,
}


def _named(value: Any) -> Any:
    """`objective: masked` for `objective: {name: masked}`."""
    named = {"name": value} if isinstance(value, str) else value
    if isinstance(named, dict) and named.get("name") not in [*BY_NAME]:  # a list: what is no word may not be hashable
        raise ValueError(f"name is {named.get('name')!r}, expected one of {', '.join(BY_NAME)}; set objective: causal")
    return named


Objective = Annotated[
    CausalConfig | MaskedConfig | SpanCorruptionConfig | PrefixConfig,
    Field(discriminator="name"),
    BeforeValidator(_named),
]
