"""What every section of the config is made of."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _compiling(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error}); correct it") from None
    return pattern


def _no_float16(value: Any) -> Any:
    if value in ("float16", "fp16", "half"):
        raise ValueError(
            f"{value} overflows, and DeepSpeed then leaves steps out without a word, so that no run could be repeated or resumed exactly; "
            "set bfloat16, or float32 where the hardware lacks it"
        )
    return value


def _word(value: Any) -> Any:
    """YAML reads a bare on or off as true or false."""
    return ("on" if value else "off") if isinstance(value, bool) else value


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
Pattern = Annotated[str, AfterValidator(_compiling)]
"""A regular expression that matches whole names."""
Precision = Annotated[Literal["float32", "bfloat16"], BeforeValidator(_no_float16)]
Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_word)]
