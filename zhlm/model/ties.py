"""Matrices and biases that several modules of a model share, kept shared through resizing, PEFT and merging.

transformers ties by the config, which for T5 and mT5 says tied whatever the weights are; PEFT ties by names, and neither T5's embeddings
nor the head of BERT as they are.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from zhlm.model.inspect import head_name, is_tied


def resize(model: PreTrainedModel, rows: int) -> None:
    """Give the model's tables so many rows, those that it had unchanged; what was tied stays tied, and nothing else is."""
    tied = is_tied(model)
    says_what_is(model)
    model.resize_token_embeddings(rows, mean_resizing=False)
    keeper, outputs = _second_bias(model), model.get_output_embeddings()
    if keeper is not None and not tied:  # resizing left it short, or tied it to the head's, which is then not saved
        keeper.bias = nn.Parameter(outputs.bias.detach().clone(), requires_grad=outputs.bias.requires_grad)


def says_what_is(model: PreTrainedModel) -> None:
    """Have the config say whether input and output are tied, for whoever goes by it: other versions of transformers do."""
    model.config.tie_word_embeddings = is_tied(model)


def tie_copies(model: PreTrainedModel, tables: Sequence[str]) -> None:
    """Give what PEFT copied one by one (`modules_to_save`) the ties of the originals. `tables`: their names."""
    copies: dict[nn.Parameter, nn.Parameter] = {}
    for wrapper in (model.get_submodule(name) for name in tables):
        if isinstance(wrapper, ModulesToSaveWrapper):
            (copy,) = wrapper.modules_to_save.values()
            copy.weight = copies.setdefault(wrapper.original_module.weight, copy.weight)


def tie_bias(model: PreTrainedModel) -> None:
    """BERT and RoBERTa name the head's bias twice, and save it by the name that is not the head's: make it the trained one."""
    keeper = _second_bias(model)
    if keeper is not None and is_tied(model):
        keeper.bias = model.get_output_embeddings().bias


@contextmanager
def unwarned() -> Iterator[None]:
    """Without PEFT's warnings about ties: they are made here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`|You have requested `ensure_weight_tying`")
        yield


def _second_bias(model: PreTrainedModel) -> Any | None:
    """The module around the head that keeps its bias too, if there is one."""
    name = head_name(model)
    if name is None or getattr(model.get_output_embeddings(), "bias", None) is None:
        return None
    keeper = model.get_submodule(name.rpartition(".")[0])
    return keeper if getattr(keeper, "bias", None) is not None else None
