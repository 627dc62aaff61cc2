"""What models write to prompts, as many at a time as are given: one rule of sampling, one way to pad, one to tell what was added.

Shape letters: R rows, T tokens of the longest row.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import GenerationConfig

from zhlm.inference.both_ways import prompts_seen_both_ways
from zhlm.inference.fill_mask import pad_rows
from zhlm.tokenizer.decode import decode
from zhlm.tokenizer.special import generation_ids


def sampling(
    tokenizer: Any, *, max_new_tokens: int, temperature: float, top_p: float, num_return_sequences: int, **more: Any
) -> GenerationConfig:
    """Greedy with temperature 0, and then one sequence, for all would be alike."""
    sampled, ids = temperature > 0, generation_ids(tokenizer)
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sampled,
        temperature=temperature if sampled else 1.0,
        top_p=top_p if sampled else 1.0,
        top_k=0 if sampled else None,  # transformers would cut to the 50 likeliest unasked
        num_return_sequences=num_return_sequences if sampled else 1,
        **ids | {"pad_token_id": ids["pad_token_id"] or 0},
        **more,
    )


@torch.inference_mode()
def continue_rows(model: Any, tokenizer: Any, rows: Sequence[list[int]], rule: GenerationConfig, *, both_ways: bool) -> list[str]:
    """What follows each prompt, without it, as many texts as the rule wants. `both_ways`: prompts are read as prefixes are in training."""
    ids_RT, mask_RT = (t.to(model.device) for t in pad_rows(rows, rule.pad_token_id, left=True))
    with prompts_seen_both_ways(model) if both_ways else nullcontext():
        written_RT = model.generate(input_ids=ids_RT, attention_mask=mask_RT, generation_config=rule)
    new_RT, each = written_RT[:, ids_RT.shape[1] :].tolist(), rule.num_return_sequences
    return [_continuation(tokenizer, rows[r // each], new_T) for r, new_T in enumerate(new_RT)]


@torch.inference_mode()
def write_rows(model: Any, rows: Sequence[list[int]], rule: GenerationConfig) -> list[list[int]]:
    """The ids that a decoder writes to what its encoder reads, its start and its padding among them."""
    starts = (getattr(each, "decoder_start_token_id", None) for each in (model.generation_config, model.config))
    rule.decoder_start_token_id = next((token for token in starts if token is not None), model.config.pad_token_id)  # as in training
    ids_RT, mask_RT = (t.to(model.device) for t in pad_rows(rows, rule.pad_token_id))
    written: list[list[int]] = model.generate(input_ids=ids_RT, attention_mask=mask_RT, generation_config=rule).tolist()
    return written


def _continuation(tokenizer: Any, prompt_ids: list[int], ids: list[int]) -> str:
    """Decoded together with the prompt, because tokenizers with word marks drop the space at the start of what they decode."""
    whole, head = decode(tokenizer, [*prompt_ids, *ids]), decode(tokenizer, prompt_ids)
    return whole[len(head) :] if whole.startswith(head) else decode(tokenizer, ids)
