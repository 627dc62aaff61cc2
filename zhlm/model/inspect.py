"""What is inside a model: its linear layers, its blocks, its embeddings, and whether input and output share one matrix."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def linear_names(model: PreTrainedModel) -> tuple[list[str], list[str]]:
    """Whole names of all linear layers, the head with them, and of those inside the transformer blocks."""
    outputs = model.get_output_embeddings()
    every = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    without_head = [name for name, module in every.items() if module is not outputs]
    return list(every), [n for n in without_head if any(part.isdigit() for part in n.split("."))] or without_head


def linear_targets(model: PreTrainedModel) -> list[str]:
    """Endings that name every linear layer of the transformer blocks, as PEFT's target_modules takes them; head and embeddings are not.

    An ending is as short as it can be without matching a linear layer outside of the blocks.
    """
    _, in_blocks = linear_names(model)
    others = [name for name, _ in model.named_modules() if name and name not in set(in_blocks)]
    return sorted({_ending(name, others) for name in in_blocks})


def block_counts(model: nn.Module) -> dict[str, int]:
    """The number of transformer blocks, by the name of the list that holds them: one, or one each of encoder and decoder."""
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    return {name: count for name, count in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}


def table_modules(model: PreTrainedModel) -> list[Any]:
    """The input embeddings, and the output head where there is one.

    T5 has three of the first, with one matrix: one that holds it and is never called, and those of encoder and decoder.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    aliases = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not inputs and m.weight is inputs.weight]
    return [module for module in (inputs, *aliases, outputs) if module is not None]


def table_names(model: PreTrainedModel) -> list[str]:
    """Whole names of the input embeddings and the output head; all of them for tied models too."""
    wanted = table_modules(model)
    return [name for name, module in model.named_modules(remove_duplicate=False) if any(module is w for w in wanted)]


def head_name(model: PreTrainedModel) -> str | None:
    """The whole name of the output head."""
    outputs = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is outputs), None)


def embedding_names(model: PreTrainedModel) -> list[str]:
    """Endings that name the input embeddings and the output head, as PEFT's modules_to_save takes them; for tied models too."""
    names = table_names(model)
    others = [name for name, _ in model.named_modules() if name and name not in names]
    return list(dict.fromkeys(_ending(name, others) for name in names))


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output head is the input embedding itself."""
    outputs = model.get_output_embeddings()
    return outputs is not None and outputs.weight is model.get_input_embeddings().weight


def has_plain_tables(model: PreTrainedModel) -> bool:
    """Whether there are one embedding and a head without a bias: all that PEFT ties by itself, or trains some rows of. The head's bias of
    BERT would be lost, and the embeddings of T5's encoder and decoder become linear layers."""
    return len(table_names(model)) == 2 and getattr(model.get_output_embeddings(), "bias", None) is None


def _ending(name: str, others: Iterable[str]) -> str:
    parts = name.split(".")
    for length in range(1, len(parts)):
        ending = ".".join(parts[-length:])
        if not any(other == ending or other.endswith(f".{ending}") for other in others):
            return ending
    return name
