"""From a run's config to its objective."""

from dataclasses import replace
from typing import Any

from zhlm.config.schema import RunConfig
from zhlm.errors import ConfigError
from zhlm.model.kind import check_fits
from zhlm.objectives.attention import narrowest_window
from zhlm.objectives.batch import BatchMaker
from zhlm.objectives.causal import Causal
from zhlm.objectives.masked import Masked
from zhlm.objectives.prefix import Prefix
from zhlm.objectives.span_corruption import SpanCorruption

KINDS: dict[str, Any] = {"causal": Causal, "masked": Masked, "span_corruption": SpanCorruption, "prefix": Prefix}


def objective_of(config: RunConfig, tokenizer: Any, model_config: Any) -> BatchMaker:
    """The objective of a run, for its tokenizer and the transformers config of its model.

    Raises: BaseModelError when the model is of another class, or the tokenizer lacks a token that the objective needs; ConfigError when
    the blocks are too long for it.
    """
    check_fits(config.objective, model_config.to_dict(), config.base.model)
    made = maker_of(config, tokenizer, model_config)
    if isinstance(made, Prefix) or (isinstance(made, Masked) and made.packed):
        _check_window(config, model_config)
    return made


def maker_of(config: RunConfig, tokenizer: Any, model_config: Any) -> BatchMaker:
    """What the objective of a run makes of its blocks, whether or not the model is of a class that takes it.

    Raises: as `objective_of`, for the tokenizer and the blocks.
    """
    made: BatchMaker = KINDS[config.objective.name].of(config.objective, tokenizer, model_config, config.seed)
    if isinstance(made, SpanCorruption):
        made.check_block(config.pack.block_tokens)
    if isinstance(made, Causal) and config.pack.packing == "none":
        return replace(made, left_padding=tokenizer.padding_side == "left")
    if isinstance(made, Masked) and config.pack.packing == "none":
        return replace(made, packed=False)
    return made


def _check_window(config: RunConfig, model_config: Any) -> None:
    """One mask for all layers takes the place of the window that some of them have."""
    window, objective = narrowest_window(model_config.get_text_config()), config.objective.name
    if window is not None and window < config.pack.block_tokens:
        unpacked = ", or pack.packing: none" if objective == "masked" else ""
        raise ConfigError(
            f"objective: {config.base.model} has layers that see {window} tokens, and {objective} gives all layers one mask, by which they "
            f"would see pack.block_tokens {config.pack.block_tokens}; set pack.block_tokens to {window} or less{unpacked}"
        )
