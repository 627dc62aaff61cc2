"""`zhlm model BASE`: what a base is made of and what LoRA would train of it, from its config alone."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.logging import set_verbosity_error

from zhlm.config.trained import LoraConfig
from zhlm.model.inspect import block_counts, head_name, is_tied, linear_names, table_names
from zhlm.model.kind import TAKES, kind_of
from zhlm.model.load import load_model_config, model_from_config, model_positions
from zhlm.model.shape import Linear
from zhlm.model.trained import lora_sizes


def describe_base(base: str) -> str:
    """The class, sizes and names of a base: a hub name, or a folder such as a run's vocab/ or export/merged/. No weights are read.

    Raises: BaseModelError when there is no such base, or none that can be trained.
    """
    set_verbosity_error()  # of oddities in configs, which are not the question here
    with torch.device("meta"):
        model = model_from_config(base, load_model_config(base))
    _untie_as_told(model)
    takes = f"  objectives   {' or '.join(TAKES[kind_of(model.config.to_dict())])}"
    return "\n".join([f"{base}: {type(model).__name__}", *_rows(_sizes(model)), takes, "", *_linear_lines(model), "", *_lora_lines(model)])


def _untie_as_told(model: PreTrainedModel) -> None:
    """transformers takes T5 1.1 and mT5 for tied until it finds two matrices in the weights, which are not read here; config.json tells."""
    settings = json.loads((Path(model.config.name_or_path) / "config.json").read_text(encoding="utf-8"))
    if settings.get("tie_word_embeddings") is False and is_tied(model):
        model.get_output_embeddings().weight = nn.Parameter(torch.empty_like(model.get_input_embeddings().weight))


def _sizes(model: PreTrainedModel) -> list[tuple[str, ...]]:
    every = {name: p.numel() for name, p in model.named_parameters()}
    head = head_name(model)
    inputs, *aliases = [name for name in table_names(model) if name != head]
    rows, width = model.get_input_embeddings().weight.shape
    names = inputs + (f" (and {', '.join(aliases)})" if aliases else "")
    found = [("parameters", f"{sum(every.values()):,}", ""), ("embeddings", f"{rows * width:,}", f"{names}, {rows:,} rows of {width:,}")]
    if head is not None:
        biased = ", with a bias" if model.get_output_embeddings().bias is not None else ""
        size = sum(p.numel() for p in model.get_output_embeddings().parameters())
        tied = ("tied", f"{head}, the embeddings again{biased}")
        found.append(("head", *(tied if is_tied(model) else (f"{size:,}", head + biased))))
    for blocks, count in block_counts(model).items():
        size = sum(n for name, n in every.items() if name.startswith(f"{blocks}.0."))
        found.append(("per layer", f"{size:,}", f"{blocks}, {count} layers"))
    positions = model_positions(model)
    return [*found, ("positions", "no limit" if positions is None else f"{positions:,}", "")]


def _linear_lines(model: PreTrainedModel) -> list[str]:
    """One row for all layers that differ in the number of their block only."""
    auto = {*linear_names(model)[1]}
    alike = Counter((re.sub(r"\.\d+(?=\.)", ".*", name), m.inputs, m.outputs, name in auto) for name, m in linear_layers(model).items())
    rows = [
        (name, f"{inputs:,} -> {outputs:,}", f"{count:,}", "auto" if chosen else "")
        for (name, inputs, outputs, chosen), count in alike.items()
    ]
    return _rows([("linear layers", "shape", "number", "train.lora.targets"), *rows], indent="")


def _lora_lines(model: PreTrainedModel) -> list[str]:
    lora, layers = LoraConfig(), linear_layers(model)
    added = sum(lora_sizes({name: layers[name] for name in linear_names(model)[1]}, lora).values())
    total = sum(p.numel() for p in model.parameters())
    tables = sum({id(p): p.numel() for name in table_names(model) for p in model.get_submodule(name).parameters()}.values())
    return [
        f"LoRA with targets: auto and r: {lora.r} trains {added:,} parameters, {added / total:.2%} of the base; "
        f"with train.embeddings: all {added + tables:,}"
    ]


def linear_layers(model: PreTrainedModel) -> dict[str, Linear]:
    """All linear layers by their whole names, the head with them."""
    found = {}
    for name in linear_names(model)[0]:
        module = model.get_submodule(name)
        # GPT-2 keeps its weights as (in, out).
        outputs, inputs = module.weight.shape if isinstance(module, nn.Linear) else reversed(module.weight.shape)
        found[name] = Linear(name, "mlp", int(inputs), int(outputs), module.bias is not None)
    return found


def _rows(table: Iterable[Sequence[str]], indent: str = "  ") -> list[str]:
    rows = list(table)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [indent + "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
