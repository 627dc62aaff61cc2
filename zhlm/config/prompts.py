"""Prompts that fit what the model has learned: the same check before anything starts and where they are answered."""

from collections.abc import Sequence

from zhlm.config.schema import RunConfig
from zhlm.errors import RunError


def check_masks(config: RunConfig, prompts: Sequence[str], mask_token: str) -> None:
    """Raises: RunError for a prompt without a mask where the model guesses masks."""
    bare = next((p for p in prompts if mask_token not in p), None) if config.objective.name == "masked" else None
    if bare is not None:
        raise RunError(
            f"generate: {config.base.model} is a masked model, which guesses masks and does not continue a text; put "
            f"{mask_token} into the prompt {bare!r}, in the place of what it shall guess"
        )
