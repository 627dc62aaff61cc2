"""More rows for a model's vocabulary: input and output embeddings grow together, old rows stay bit for bit as they were.

Shape letters: V old rows, N new rows, D width.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from zhlm.errors import BaseModelError
from zhlm.model.inspect import is_tied
from zhlm.model.ties import resize

InitRows = Callable[[torch.Tensor], torch.Tensor]
"""Old rows (V, D) in float32 -> new rows (N, D)."""


def add_rows(model: PreTrainedModel, first_row: int, num_rows: int, init: InitRows, *, pad_to_multiple: int = 1) -> int:
    """Give the ids from `first_row` on `num_rows` rows made by `init`, and return the rows that the model has now.

    `first_row` is the length of the old tokenizer: a base with more rows than that (padding) has those taken first. Padding behind the
    new rows is the mean of the old ones: an average logit, where zeros could win.

    Raises: BaseModelError when the model has fewer rows than `first_row`, or a head that would not grow with the others.
    """
    rows_before = int(model.get_input_embeddings().weight.shape[0])
    if first_row > rows_before:
        raise BaseModelError(
            f"base: the tokenizer has {first_row} entries but the embedding only {rows_before} rows; resize the model first"
        )
    check_heads(model)
    wanted = max(rows_before, first_row + num_rows)
    rows = -(-wanted // pad_to_multiple) * pad_to_multiple
    if rows != rows_before:
        resize(model, rows)
    fill_rows(model, first_row, num_rows, init)
    padding_from = max(rows_before, first_row + num_rows)
    for tensor in _vocabulary_tensors(model):
        with torch.no_grad():
            tensor[padding_from:] = tensor[:first_row].mean(dim=0, dtype=torch.float32).to(tensor.dtype)
    return rows


def fill_rows(model: PreTrainedModel, first_row: int, num_rows: int, init: InitRows) -> None:
    """Write rows made by `init` over the new ones that `add_rows` gave; a bias of the head starts as the old ones' mean.

    They are made on the CPU, so that they do not depend on where the model is.
    """
    with torch.no_grad():
        for tensor in _vocabulary_tensors(model):
            old = tensor[:first_row].float().cpu()
            if old.ndim == 1:
                tensor[first_row : first_row + num_rows] = old.mean().to(tensor.dtype)
                continue
            new_ND = init(old)
            assert new_ND.shape == (num_rows, tensor.shape[1]), f"init made rows of shape {tuple(new_ND.shape)}"
            tensor[first_row : first_row + num_rows] = new_ND.to(tensor)


def check_heads(model: PreTrainedModel) -> None:
    """Refuse a model with a head that resizing does not know.

    Layers inside the blocks may have as many outputs as there are rows by chance; outside of them it is a head.

    Raises: BaseModelError.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    known = {id(tensor) for tensor in _vocabulary_tensors(model)}
    for name, module in model.named_modules():
        of_block = any(part.isdigit() for part in name.split("."))
        if isinstance(module, nn.Linear) and module.out_features == rows and id(module.weight) not in known and not of_block:
            raise BaseModelError(
                f"base: {type(model).__name__} has a separate head {name} of {rows} rows that would not grow with its embeddings; "
                "set vocab: null, or choose a model with one head"
            )


def _vocabulary_tensors(model: PreTrainedModel) -> list[torch.Tensor]:
    """What has a row for each id: the input embedding, an untied head, a bias of the head."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    found = [inputs.weight]
    if outputs is not None:
        found += [] if is_tied(model) else [outputs.weight]
        found += [outputs.bias] if getattr(outputs, "bias", None) is not None else []
    assert all(isinstance(t, torch.Tensor) for t in found), "an embedding without a weight matrix"
    return found


def replace_rows(model: PreTrainedModel, old_rows: int, num_rows: int, remake: InitRows) -> None:
    """Give the model `num_rows` rows, which `remake` makes of the first `old_rows` of the old ones, more or fewer; of a head's bias as of a
    table one column wide.

    Raises: BaseModelError when the model has a head that would not change with the others.
    """
    check_heads(model)
    made = []
    for tensor in _vocabulary_tensors(model):
        old = tensor.detach()[:old_rows].float().cpu()
        made.append(remake(old if old.ndim > 1 else old[:, None]).reshape(num_rows, *old.shape[1:]))
    resize(model, num_rows)
    with torch.no_grad():
        for tensor, new in zip(_vocabulary_tensors(model), made, strict=True):
            tensor.copy_(new)
