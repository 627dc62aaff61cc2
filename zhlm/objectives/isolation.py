"""Proof, on the model itself and with the inputs of its objective, that documents see neither each other nor padding."""

import inspect
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from zhlm.errors import BaseModelError
from zhlm.objectives.batch import IGNORED, Batch, BatchMaker, logits_of
from zhlm.objectives.masked import Masked
from zhlm.objectives.prefix import Prefix
from zhlm.records import Blocks

TOLERANCE = 0.05
"""Largest change of a log-probability that rounding in bfloat16 may cause; a leak moves it by whole units."""
DOCUMENT_TOKENS = 16


def check_isolation(model: PreTrainedModel, objective: BatchMaker, packing: str) -> None:
    """Raises: BaseModelError when a document's predictions depend on the one packed before it, or on the padding where none is packed; or
    when a prefix is not seen in both directions."""
    kind, rows = type(model).__name__, int(model.get_input_embeddings().weight.shape[0])
    packed = packing != "none"
    remedy = "choose another base" + (", or set pack.packing: none" if packed and isinstance(objective, Masked) else "")
    batch = _documents(objective, rows, packed)
    untaken = [name for name in batch.inputs if name not in inspect.signature(model.forward).parameters]
    if untaken:
        if untaken == ["position_ids"] and not isinstance(objective, Masked):
            remedy = "choose a base with positions (Llama, Qwen, GPT-2, Mistral ...)"
        raise BaseModelError(f"train: {kind} takes no {untaken[0]}, so documents packed into one block would see each other; {remedy}")
    changed, places_T = _other_first(batch, rows) if packed else _other_padding(batch)
    try:
        with torch.no_grad():
            one_TV, other_TV = (logits_of(model.eval(), b)[0, places_T].float().log_softmax(-1) for b in (batch, changed))
    except (RuntimeError, ValueError, IndexError) as error:  # as DeBERTa, which multiplies a mask with itself
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:100]
        raise BaseModelError(f"train: {kind} cannot read what keeps documents apart ({reason}); {remedy}") from error
    leak = float((one_TV - other_TV).abs().max())
    if leak > TOLERANCE:
        what = "a packed document changes the next one's" if packed else "padding changes a document's"
        by = " and ".join(name for name in batch.inputs if not name.endswith("input_ids"))
        raise BaseModelError(f"train: in {kind} {what} log-probabilities by {leak:.3f}, expected 0; its attention ignores {by}, {remedy}")
    if isinstance(objective, Prefix):
        _check_both_ways(model, objective, rows)


def _check_both_ways(model: PreTrainedModel, objective: Prefix, rows: int) -> None:
    """Some classes, such as GPT-Neo, hide what comes later from the layers, whatever the mask says."""
    batch = _documents(replace(objective, min_share=0.5, max_share=0.5), rows, packed=True)
    ids_BT, last = batch.inputs["input_ids"].clone(), DOCUMENT_TOKENS // 2 - 1
    ids_BT[:, last] = (ids_BT[:, last] + 7) % rows
    changed = replace(batch, inputs={**batch.inputs, "input_ids": ids_BT})
    with torch.no_grad():
        one_TV, other_TV = (logits_of(model, b)[0, :last] for b in (batch, changed))
    if torch.equal(one_TV, other_TV):
        raise BaseModelError(
            f"train: in {type(model).__name__} a prefix does not see what comes later in it, which objective prefix needs; set objective: "
            "causal, or choose another base (Llama, Qwen, GPT-2, Mistral ...)"
        )


def _documents(objective: BatchMaker, rows: int, packed: bool) -> Batch:
    """Two documents side by side, or one and padding; long enough that something is to be predicted."""
    tokens, batch = DOCUMENT_TOKENS, None
    while batch is None or not batch.num_targets:
        ids = np.arange(2 * tokens) * 31 % (rows - 1) + 1
        ids[tokens:] *= packed
        batch = objective.make_batch(Blocks(ids[None], [np.array([tokens, 2 * tokens] if packed else [tokens], np.uint32)]), [0])
        tokens *= 2
    return batch


def _other_first(batch: Batch, rows: int) -> tuple[Batch, torch.Tensor]:
    """The batch with other tokens in the first quarter of what each part of the model reads, and the last quarter of its predictions: of
    two equal documents these are in the first and in the second, also where an objective takes tokens out or puts some in."""
    inputs, used = dict(batch.inputs), 0
    for name in sorted(n for n in inputs if n.endswith("input_ids")):  # those of a decoder, which predicts, come first
        ids_BT = inputs[name].clone()
        length = int(ids_BT.nonzero()[-1, 1]) + 1  # no token of ours is 0
        ids_BT[:, : length // 4] = (ids_BT[:, : length // 4] + 7) % rows
        inputs[name], used = ids_BT, used or length
    return replace(batch, inputs=inputs), torch.arange(used - used // 4, used)


def _other_padding(batch: Batch) -> tuple[Batch, torch.Tensor]:
    """The batch with tokens in place of padding, and where it predicts."""
    ids_BT = batch.inputs["input_ids"]
    changed = replace(batch, inputs={**batch.inputs, "input_ids": ids_BT.masked_fill(ids_BT == 0, 1)})
    return changed, (batch.targets_BT[0] != IGNORED).nonzero()[:, 0]
