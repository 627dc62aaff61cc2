"""Training only the rows that a vocabulary gained: the old ones stay bit for bit, and have no gradients and no optimizer states.

Shape letters: B blocks, T block tokens, D width, V rows of the vocabulary, N new rows.
"""

from copy import deepcopy
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel

from zhlm.config.schema import RunConfig
from zhlm.errors import ConfigError
from zhlm.model.inspect import embedding_names
from zhlm.storage import Run
from zhlm.tokenizer.load import load_tokenizer, vocabulary_of


class _Embedding(nn.Embedding):
    """`new_rows` (N, D) stand for those of `weight` (V, D) from `first_row` on."""

    new_rows: nn.Parameter
    first_row: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        place_BT = input - self.first_row
        last = len(self.new_rows) - 1
        new_BTD = embedding(place_BT.clamp(0, last), self.new_rows)
        is_new_BT = (place_BT >= 0) & (place_BT <= last)
        return torch.where(is_new_BT[..., None], new_BTD, embedding(input, self.weight))


class _Head(nn.Linear):
    """The same for the output."""

    new_rows: nn.Parameter
    first_row: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # In three parts, because a whole table with the new rows in it would get a gradient of its own size.
        tables = (self.weight[: self.first_row], self.new_rows, self.weight[self.first_row + len(self.new_rows) :])
        return torch.cat([linear(input, table) for table in tables if len(table)], dim=-1)


def new_rows_of(config: RunConfig, run: Run) -> range | None:
    """The ids that the vocab stage added, where only their rows are trained. Raises: RunError when that stage is not finished."""
    if config.train.embeddings != "new_rows":
        return None
    added = run.manifest("vocab")["facts"]["added"]
    stop = vocabulary_of(load_tokenizer(run.base_model(config)))  # pieces and words are behind all others
    return range(stop - added, stop)


def split_rows(model: PreTrainedModel, rows: range) -> None:
    """Make `rows` of input and output a trained parameter of their own, one for both where they are tied.

    In place, so that names and ties stay. Raises: ConfigError for an embedding or a head that does more than look up and multiply.
    """
    tables = _tables(model)
    odd = next((t for t in tables if type(t) not in (nn.Embedding, nn.Linear) or getattr(t, "bias", None) is not None), None)
    if odd is not None:
        raise ConfigError(
            f"train: embeddings is new_rows, but the {type(odd).__name__} of {type(model).__name__} has more than rows (a bias, LoRA); "
            "set train.embeddings: all, and name no head in train.lora.targets"
        )
    parameters: dict[nn.Parameter, nn.Parameter] = {}
    for table in tables:
        shared = parameters.setdefault(table.weight, nn.Parameter(table.weight[rows.start : rows.stop].detach().clone()))
        table.first_row, table.new_rows = rows.start, shared
        table.__class__ = _Embedding if isinstance(table, nn.Embedding) else _Head


def join_rows(model: PreTrainedModel) -> None:
    """Put the trained rows into their tables, which become plain ones again. Does nothing to a model that was not split."""
    for table in _tables(model):
        plain = {_Embedding: nn.Embedding, _Head: nn.Linear}.get(type(table))
        if plain is not None:
            with torch.no_grad():
                table.weight[table.first_row : table.first_row + len(table.new_rows)] = table.new_rows
            del table.new_rows, table.first_row
            table.__class__ = plain


def as_trainable_tokens(model: PeftModel, base: PreTrainedModel) -> PeftModel:
    """A split model built again on its base with PEFT's own form of trained rows, so that PEFT alone can load what it saves.

    For saving, not for training: there PEFT makes the whole table anew in each pass, and a gradient of its size.
    """
    indices: list[int] = []
    for table, target in zip(_tables(model.get_base_model()), _tables(base), strict=True):
        indices = list(range(table.first_row, table.first_row + len(table.new_rows)))
        with torch.no_grad():
            target.weight[indices] = table.new_rows
    config = deepcopy(model.active_peft_config)
    config.trainable_token_indices = dict.fromkeys(embedding_names(base), indices)
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.endswith(".new_rows"):
                adapted.get_parameter(name).copy_(parameter)
    return adapted.eval()


def is_split(model: PreTrainedModel) -> bool:
    """Whether only some rows of the embedding are trained."""
    return isinstance(model.get_input_embeddings(), _Embedding)


def _tables(model: PreTrainedModel) -> list[Any]:
    return [table for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table is not None]
