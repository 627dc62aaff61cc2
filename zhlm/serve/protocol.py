"""Requests and answers of the HTTP interface for models that vLLM does not serve."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Endpoint = Literal["completions", "fill-mask", "text-to-text"]
"""What a model is asked under /v1/: `completions` is vLLM's."""

Text = Annotated[str, Field(max_length=1 << 20)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Text | Annotated[list[Text], Field(max_length=1024)]
    """A text, or several that are answered in their order."""


class FillMaskRequest(Request):
    top_k: Annotated[int, Field(ge=1, le=1000)] = 5
    """Tokens to name for each mask."""


class TextToTextRequest(Request):
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """0: greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    num_return_sequences: Annotated[int, Field(ge=1, le=16)] = 1

    @model_validator(mode="after")
    def _differing(self) -> Self:
        if self.temperature == 0 and self.num_return_sequences > 1:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences} and temperature 0, which gives one text so many times; "
                "set a temperature above 0"
            )
        return self


class Guessed(BaseModel):
    """A token in the place of one mask."""

    token: str
    token_id: int
    score: float
    """Its probability."""
    text: str
    """The text with it; other masks stay."""


class FilledText(BaseModel):
    text: str
    """With the best token in the place of each mask."""
    masks: list[list[Guessed]]
    """For each mask, the best tokens first."""


class FillMaskAnswer(BaseModel):
    model: str
    results: list[FilledText]


class WrittenTexts(BaseModel):
    texts: list[str]


class TextToTextAnswer(BaseModel):
    model: str
    results: list[WrittenTexts]


class Failure(BaseModel):
    """What every status but 200 comes with."""

    detail: str
