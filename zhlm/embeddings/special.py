"""The special tokens that a model's own settings name by their ids."""

from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel

from zhlm.model.load import first_position
from zhlm.tokenizer.special import document_token


def name_special_tokens(model: PreTrainedModel, tokenizer: Any, only: Collection[str] | None = None) -> None:
    """Have the model's config and its generation config name the tokenizer's special tokens, or those with the roles in `only`: ids of
    another tokenizer may lie beyond the embedding, and generation would go on behind the end of a text."""
    start, end, pad = document_token(tokenizer, "bos"), document_token(tokenizer, "eos"), tokenizer.pad_token_id
    ids: dict[str, int | None] = {"bos_token": start.id if start else None, "eos_token": end.id if end else None}
    if not first_position(model.config):  # RoBERTa counts positions from this id
        ids["pad_token"] = pad
    generation = getattr(model, "generation_config", None)  # BERT has none
    settings = [model.config, model.config.get_text_config(), *([generation] if generation is not None else [])]
    for each in settings:
        for role, value in ids.items():
            if only is None or role in only:
                setattr(each, f"{role}_id", value)
        if only is None and pad is not None and getattr(each, "decoder_start_token_id", None) is not None:  # T5 starts with padding
            each.decoder_start_token_id = pad
