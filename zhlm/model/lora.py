"""Which parameters are trained: LoRA on linear layers, embeddings and head as a whole or their new rows, or everything."""

from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from zhlm.config.schema import TrainConfig
from zhlm.errors import ConfigError
from zhlm.model.inspect import embedding_names, is_tied, linear_targets
from zhlm.model.new_rows import split_rows


def make_trainable(model: PreTrainedModel, train: TrainConfig, seed: int, new_rows: range | None = None) -> PreTrainedModel | PeftModel:
    """Mark what `train` asks for as trainable, adding LoRA layers where it does; the seed fixes their start. `new_rows`: see `new_rows_of`.

    Raises: ConfigError when a named target matches no layer, or the model's new rows cannot be trained alone.
    """
    if train.lora is None:
        return model.requires_grad_(True)
    targets = linear_targets(model) if train.lora.targets == "auto" else train.lora.targets
    _check_targets(model, targets)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, _peft_config(model, train, targets))
    if train.embeddings == "new_rows":
        assert new_rows, "which rows are new is known before training"
        split_rows(model, new_rows)
    return adapted


def _peft_config(model: PreTrainedModel, train: TrainConfig, targets: list[str]) -> PeftLoraConfig:
    assert train.lora is not None, "only LoRA runs have a PEFT config"
    return PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=train.lora.r,
        lora_alpha=train.lora.alpha,
        lora_dropout=train.lora.dropout,
        target_modules=targets,
        modules_to_save=embedding_names(model) if train.embeddings == "all" else None,
        # Without this, saving both embedding and head silently unties a tied model (twice the parameters, and they drift apart).
        ensure_weight_tying=train.embeddings == "all" and is_tied(model),
        # GPT-2 keeps its weights as (in, out); PEFT switches to it by itself but warns.
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
    )


def _check_targets(model: PreTrainedModel, targets: list[str]) -> None:
    endings = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name}
    missing = [t for t in targets if t.rsplit(".", 1)[-1] not in endings]
    if missing:
        known = ", ".join(linear_targets(model))
        raise ConfigError(f"train: train.lora.targets names {missing[0]!r}, which {type(model).__name__} lacks; it has {known}")


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What a checkpoint holds, by name. A parameter that two modules share appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Trained and frozen parameters."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in trained_parameters(model).values())
    return {"trained": trained, "frozen": total - trained}


def parameter_groups(model: torch.nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups: matrices, embeddings with a rate of their own, and vectors without weight decay.

    Each group carries `peak_rate`, which the schedule multiplies.
    """
    embedding_ids = {id(p) for module in _embedding_modules(model) for p in module.parameters()}
    kinds: dict[str, list[torch.nn.Parameter]] = {"matrices": [], "embeddings": [], "vectors": []}
    for parameter in trained_parameters(model).values():
        kind = "embeddings" if id(parameter) in embedding_ids else "vectors" if parameter.ndim < 2 else "matrices"
        kinds[kind].append(parameter)
    embedding_rate = train.embedding_learning_rate or train.learning_rate
    return [
        {
            "params": parameters,
            "peak_rate": embedding_rate if kind == "embeddings" else train.learning_rate,
            "weight_decay": train.weight_decay if kind == "matrices" else 0.0,
        }
        for kind, parameters in kinds.items()
        if parameters
    ]


def _embedding_modules(model: torch.nn.Module) -> list[torch.nn.Module]:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel), f"expected a transformers model, got {type(base).__name__}"
    found = [base.get_input_embeddings(), base.get_output_embeddings()]
    return [m for m in found if m is not None]
