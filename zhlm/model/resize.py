"""More rows for a model's vocabulary: input and output embeddings grow together, old rows stay bit for bit as they were.

Shape letters: V old rows, N new rows, D width.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from zhlm.errors import BaseModelError
from zhlm.model.inspect import is_tied

InitRows = Callable[[torch.Tensor], torch.Tensor]
"""Old rows (V, D) in float32 -> new rows (N, D)."""


def add_rows(model: PreTrainedModel, first_row: int, num_rows: int, init: InitRows, *, pad_to_multiple: int = 1) -> int:
    """Give the ids from `first_row` on `num_rows` rows made by `init`, and return the rows that the model has now.

    `first_row` is the length of the old tokenizer: a base with more rows than that (padding) has those taken first. Padding behind the
    new rows is the mean of the old ones: an average logit, where zeros could win.

    Raises: BaseModelError when the model has fewer rows than `first_row`.
    """
    rows_before = int(model.get_input_embeddings().weight.shape[0])
    if first_row > rows_before:
        raise BaseModelError(
            f"base: the tokenizer has {first_row} entries but the embedding only {rows_before} rows; resize the model first"
        )
    wanted = max(rows_before, first_row + num_rows)
    rows = -(-wanted // pad_to_multiple) * pad_to_multiple
    if rows != rows_before:
        model.resize_token_embeddings(rows, mean_resizing=False)
    modules: list[nn.Module] = [model.get_input_embeddings()]
    if not is_tied(model) and model.get_output_embeddings() is not None:
        modules.append(model.get_output_embeddings())
    for module in modules:
        _assign(module.weight, first_row, num_rows, max(rows_before, first_row + num_rows), init)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if isinstance(bias, torch.Tensor):
        with torch.no_grad():
            bias[first_row : first_row + num_rows] = bias[:first_row].float().mean()
            bias[max(rows_before, first_row + num_rows) :] = bias[:first_row].float().mean()
    return rows


def _assign(weight: torch.Tensor | nn.Module, first_row: int, num_rows: int, padding_from: int, init: InitRows) -> None:
    assert isinstance(weight, torch.Tensor), "an embedding without a weight matrix"
    with torch.no_grad():
        old_VD = weight[:first_row].float()
        new_ND = init(old_VD)
        assert new_ND.shape == (num_rows, weight.shape[1]), f"init made rows of shape {tuple(new_ND.shape)}"
        weight[first_row : first_row + num_rows] = new_ND.to(weight.dtype)
        weight[padding_from:] = old_VD.mean(dim=0).to(weight.dtype)
