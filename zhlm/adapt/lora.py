"""Which parameters are trained: LoRA on linear layers, embeddings and head as a whole or their new rows, or everything."""

import re
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from zhlm.adapt.new_rows import join_rows, split_rows
from zhlm.config.schema import TrainConfig
from zhlm.config.trained import LoraConfig
from zhlm.model.choose import check_head, choose_linears, choose_modules, factors_of, frozen_parameters
from zhlm.model.inspect import (
    block_counts,
    embedding_names,
    has_plain_tables,
    is_tied,
    linear_names,
    linear_targets,
    table_modules,
    table_names,
)
from zhlm.model.ties import says_what_is, tie_bias, tie_copies, unwarned


def make_trainable(model: PreTrainedModel, train: TrainConfig, seed: int, new_rows: range | None = None) -> PreTrainedModel | PeftModel:
    """Mark what `train` asks for as trainable, adding LoRA layers where it does; the seed fixes their start. `new_rows`: see `new_rows_of`.

    Raises: ConfigError when a name or pattern of `train` matches nothing, or the model's new rows cannot be trained alone.
    """
    says_what_is(model)
    if train.lora is None:
        model.requires_grad_(True)
        _freeze(model, train)
        return model
    tables = table_names(model)
    torch.manual_seed(seed)
    with unwarned():
        adapted = get_peft_model(model, _peft_config(model, train, train.lora))
    tie_copies(model, tables)
    if train.embeddings == "new_rows":
        assert new_rows, "which rows are new is known before training"
        split_rows(model, new_rows)
    return adapted


def _freeze(model: PreTrainedModel, train: TrainConfig) -> None:
    if train.freeze is None:
        return
    parameters = dict(model.named_parameters())
    of_tables = {id(p) for module in table_modules(model) for p in module.parameters()}
    tables = [name for name, p in parameters.items() if id(p) in of_tables]
    for name in frozen_parameters(list(parameters), block_counts(model), tables, train.freeze, type(model).__name__):
        parameters[name].requires_grad_(False)


def _peft_config(model: PreTrainedModel, train: TrainConfig, lora: LoraConfig) -> PeftLoraConfig:
    kind, tables = type(model).__name__, table_names(model)
    linears = choose_linears(*linear_names(model), lora, kind)
    check_head(linears, tables, train, tied=is_tied(model))
    modules = choose_modules([name for name, _ in model.named_modules() if name], linears, tables, lora, kind)
    return PeftLoraConfig(
        task_type=_task(model),
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=linear_targets(model) if lora.targets == "auto" else linears,
        # Whole names: PEFT takes any name that ends so, q_norm for norm as well.
        modules_to_save=[*modules, *(embedding_names(model) if train.embeddings == "all" else [])] or None,
        # Without this, saving both embedding and head silently unties a tied model (twice the parameters, and they drift apart).
        ensure_weight_tying=train.embeddings == "all" and is_tied(model) and has_plain_tables(model),
        # GPT-2 keeps its weights as (in, out); PEFT switches to it by itself but warns.
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
    )


def _task(model: PreTrainedModel) -> str | None:
    """By what PEFT chooses the class around the model; it has none for masked ones, which get the plain one."""
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if model.can_generate() else None


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """A plain model of the base's class: LoRA and trained rows are in its weights, and what the base ties is tied. In place."""
    plain = model.merge_and_unload() if isinstance(model, PeftModel) else model
    join_rows(plain)
    tie_bias(plain)
    return plain


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What a checkpoint holds, by name. A parameter that two modules share appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Trained and frozen parameters."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in trained_parameters(model).values())
    return {"trained": trained, "frozen": total - trained}


def parameter_groups(model: torch.nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups: matrices, embeddings with a rate of their own, and vectors without weight decay; each once for every rate in it.

    Each group carries `peak_rate`, which the schedule multiplies. Raises: ConfigError for a pattern of rates that matches nothing.
    """
    base = _base_of(model)
    embedding_ids = {id(p) for module in table_modules(base) for p in module.parameters()}
    plus_ratio = train.lora.plus_ratio if train.lora else 1.0
    parameters = trained_parameters(model)
    factors = factors_of(map(plain_name, parameters), train.rate_factors, type(base).__name__)
    groups: dict[str, dict[float, list[torch.nn.Parameter]]] = {"matrices": {}, "embeddings": {}, "vectors": {}}
    for name, parameter in parameters.items():
        kind = "embeddings" if id(parameter) in embedding_ids else "vectors" if parameter.ndim < 2 else "matrices"
        rate = (train.embedding_learning_rate or train.learning_rate) if kind == "embeddings" else train.learning_rate
        rate *= factors[plain_name(name)] * (plus_ratio if ".lora_B." in name else 1.0)
        groups[kind].setdefault(rate, []).append(parameter)
    return [
        {"params": parameters, "peak_rate": rate, "weight_decay": train.weight_decay if kind == "matrices" else 0.0}
        for kind, by_rate in groups.items()
        for rate, parameters in by_rate.items()
    ]


def plain_name(name: str) -> str:
    """A parameter's name without what PEFT puts around it: that of the base, or `<linear layer>.lora_A.weight`."""
    return re.sub(r"\.(?:modules_to_save|base_layer|default)(?=\.)", "", name.removeprefix("base_model.model."))


def _base_of(model: torch.nn.Module) -> PreTrainedModel:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel), f"expected a transformers model, got {type(base).__name__}"
    return base
