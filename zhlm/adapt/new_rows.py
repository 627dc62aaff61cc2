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
from zhlm.model.inspect import embedding_names, has_plain_tables, table_modules, table_names
from zhlm.model.ties import tie_copies, unwarned
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
    """The same for the output, with `new_bias` (N) where it has a bias."""

    new_rows: nn.Parameter
    new_bias: nn.Parameter | None
    first_row: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # In three parts, because a whole table with the new rows in it would get a gradient of its own size.
        behind = self.first_row + len(self.new_rows)
        tables = (self.weight[: self.first_row], self.new_rows, self.weight[behind:])
        outputs = torch.cat([linear(input, table) for table in tables if len(table)], dim=-1)
        if self.new_bias is None:
            return outputs
        return outputs + torch.cat([self.bias[: self.first_row], self.new_bias, self.bias[behind:]])


def new_rows_of(config: RunConfig, run: Run) -> range | None:
    """The ids that the vocab stage added, where only their rows are trained.

    Raises: RunError when that stage is not finished, ConfigError when it added none, or none behind the old ones.
    """
    if config.train.embeddings != "new_rows":
        return None
    facts = run.manifest("vocab")["facts"]
    if not facts.get("old_rows_stay", True) or not facts["added"]:
        why = "added none" if facts.get("old_rows_stay", True) else "moved the old ones"
        raise ConfigError(f"train: embeddings is new_rows, but the vocab stage {why}; set train.embeddings: all")
    stop = vocabulary_of(load_tokenizer(run.base_model(config)))  # pieces and words are behind all others
    return range(stop - facts["added"], stop)


def split_rows(model: PreTrainedModel, rows: range) -> None:
    """Make `rows` of input and output a trained parameter of their own, one for all of them that are tied; of a head's bias another one.

    In place, so that names and ties stay. Raises: ConfigError for an embedding or a head that does more than look up and multiply.
    """
    tables = table_modules(model)
    odd = next((table for table in tables if type(table) not in (nn.Embedding, nn.Linear)), None)
    if odd is not None:
        raise ConfigError(
            f"train: embeddings is new_rows, but the {type(odd).__name__} of {type(model).__name__} has more than rows (LoRA ...); "
            "set train.embeddings: all, and name no head in train.lora.targets"
        )
    parameters: dict[nn.Parameter, nn.Parameter] = {}
    for table in tables:
        shared = parameters.setdefault(table.weight, nn.Parameter(table.weight[rows.start : rows.stop].detach().clone()))
        table.first_row, table.new_rows = rows.start, shared
        bias = getattr(table, "bias", None)
        table.new_bias = None if bias is None else nn.Parameter(bias[rows.start : rows.stop].detach().clone())
        table.__class__ = _Embedding if isinstance(table, nn.Embedding) else _Head


def join_rows(model: PreTrainedModel) -> None:
    """Put the trained rows into their tables, which become plain ones again. Does nothing to a model that was not split."""
    for table in table_modules(model):
        plain = {_Embedding: nn.Embedding, _Head: nn.Linear}.get(type(table))
        if plain is not None:
            _write_rows(table, table)
            del table.new_rows, table.new_bias, table.first_row
            table.__class__ = plain


def as_peft_saves(model: PeftModel, base: PreTrainedModel) -> PeftModel:
    """A split model built again on its base in a form that PEFT alone can load: with its own form of trained rows, or whole tables where
    that one would lose something (a head's bias, T5's embeddings).

    For saving, not for training: there PEFT makes the whole table anew in each pass, and a gradient of its size.
    """
    split = {name: model.get_base_model().get_submodule(name) for name in table_names(model.get_base_model())}
    config, plain = deepcopy(model.active_peft_config), has_plain_tables(base)
    if plain:
        rows = _rows_of(next(iter(split.values())))
        indices = list(range(rows.start, rows.stop))
        for name, table in split.items():
            _write_rows(base.get_submodule(name), table)
        config.trainable_token_indices = dict.fromkeys(embedding_names(base), indices)
    else:
        config.modules_to_save = [*(config.modules_to_save or []), *embedding_names(base)]
    with unwarned():
        adapted = get_peft_model(base, config)
    if not plain:
        tie_copies(base, list(split))
        for name, table in split.items():
            _write_rows(base.get_submodule(name).modules_to_save["default"], table)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.endswith((".new_rows", ".new_bias")):
                adapted.get_parameter(name).copy_(parameter)
    return adapted.eval()


def _write_rows(target: Any, table: Any) -> None:
    """Write the trained rows of a split table into the same ones of a plain table."""
    rows = _rows_of(table)
    with torch.no_grad():
        target.weight[rows] = table.new_rows
        if table.new_bias is not None:
            target.bias[rows] = table.new_bias


def _rows_of(table: Any) -> slice:
    return slice(table.first_row, table.first_row + len(table.new_rows))


def is_split(model: PreTrainedModel) -> bool:
    """Whether only some rows of the embedding are trained."""
    return isinstance(model.get_input_embeddings(), _Embedding)
