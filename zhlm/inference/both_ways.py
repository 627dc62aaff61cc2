"""How prefix models generate: a prompt is seen in both directions, what is written only backwards.

Shape letters: R rows, T tokens of the longest prompt.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def prompts_seen_both_ways(model: Any) -> Iterator[None]:
    """Inside, the model's own `generate` reads prompts as prefixes are read in training. Rows may be padded on the left, with an attention
    mask that says so. What follows sees all before it, which needs no other mask."""

    def widen(_: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache, ids_RT = inputs.get("past_key_values"), inputs["input_ids"]
        if cache is not None and cache.get_seq_length():  # holds the prompt
            return args, inputs
        real_RT = inputs.get("attention_mask")
        real_RT = torch.ones_like(ids_RT) if real_RT is None else real_RT  # `generate` leaves out one that hides nothing
        # The padding sees the prompt too, for a row of the softmax that sees nothing is not defined; nothing sees the padding.
        hidden_R11T = (real_RT == 0)[:, None, None]
        least = torch.finfo(model.dtype).min
        added_R1TT = torch.zeros_like(hidden_R11T, dtype=model.dtype).masked_fill(hidden_R11T, least).expand(-1, 1, real_RT.shape[1], -1)
        return args, inputs | {"attention_mask": added_R1TT}

    hook = model.register_forward_pre_hook(widen, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
