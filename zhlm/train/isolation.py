"""Proof, on the model itself, that packed documents do not see each other."""

import inspect

import numpy as np
import torch
from transformers import PreTrainedModel

from zhlm.errors import BaseModelError
from zhlm.objectives.causal import make_batch
from zhlm.records import Blocks

TOLERANCE = 0.05
"""Largest change of a log-probability that rounding in bfloat16 may cause; a leak moves it by whole units."""


def check_isolation(model: PreTrainedModel) -> None:
    """Raises: BaseModelError when a document's predictions depend on the one packed before it."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise BaseModelError(
            f"train: {type(model).__name__} takes no position_ids, so documents packed into one block would see each other; "
            "choose a base with positions (Llama, Qwen, GPT-2, Mistral ...)"
        )
    rows = int(model.get_input_embeddings().weight.shape[0])
    ids = np.arange(1, 17) * 31 % rows
    other = np.concatenate([(ids[:8] + 7) % rows, ids[8:]])
    ends = np.array([8, 16], np.uint32)
    batch = make_batch(Blocks(np.stack([ids, other]), [ends, ends]))
    with torch.no_grad():
        logits_BTV = model.eval()(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False).logits
    second_BTV = logits_BTV[:, 8:].float().log_softmax(-1)
    leak = float((second_BTV[0] - second_BTV[1]).abs().max())
    if leak > TOLERANCE:
        raise BaseModelError(
            f"train: in {type(model).__name__} a packed document changes the next one's log-probabilities by {leak:.3f}, expected 0; "
            "its attention ignores position_ids, choose another base"
        )
