"""What is inside a model: its linear layers, its embeddings, and whether input and output share one matrix."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def linear_targets(model: PreTrainedModel) -> list[str]:
    """Endings that name every linear layer of the transformer blocks, as PEFT's target_modules takes them; head and embeddings are not.

    An ending is as short as it can be without matching a linear layer outside of the blocks.
    """
    outputs = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not outputs]
    in_blocks = [n for n in linear if any(part.isdigit() for part in n.split("."))] or linear
    others = [name for name, _ in model.named_modules() if name and name not in set(in_blocks)]
    return sorted({_ending(name, others) for name in in_blocks})


def embedding_names(model: PreTrainedModel) -> list[str]:
    """Endings that name the input embedding and the output head, as PEFT's modules_to_save takes them; for tied models too."""
    wanted = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    names = [name for name, module in model.named_modules() if any(module is w for w in wanted)]
    others = [name for name, _ in model.named_modules() if name and name not in names]
    return [_ending(name, others) for name in names]


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output head is the input embedding itself."""
    outputs = model.get_output_embeddings()
    return outputs is not None and outputs.weight is model.get_input_embeddings().weight


def _ending(name: str, others: Iterable[str]) -> str:
    parts = name.split(".")
    for length in range(1, len(parts)):
        ending = ".".join(parts[-length:])
        if not any(other == ending or other.endswith(f".{ending}") for other in others):
            return ending
    return name
