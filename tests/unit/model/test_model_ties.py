"""Matrices that several modules share are trained as one, on both sides of an encoder-decoder, and saved as one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import BertConfig, MT5Config, PreTrainedModel, RobertaConfig, T5Config

from zhlm.adapt.lora import make_trainable, parameter_groups, plain_name, trained_parameters
from zhlm.checkpoint.state import TrainState, newest, save
from zhlm.config.schema import TrainConfig
from zhlm.errors import ConfigError
from zhlm.model.inspect import is_tied
from zhlm.model.load import load_model, model_from_config
from zhlm.storage import Place

BERT = dict(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=48)
T5 = dict(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_decoder_layers=2, num_heads=2)
CONFIGS: dict[str, Any] = {
    "bert": lambda: BertConfig(**BERT),
    "roberta": lambda: RobertaConfig(**BERT, pad_token_id=1),
    "t5": lambda: T5Config(**T5),
    "mt5": lambda: MT5Config(**T5),
}
TABLES = {
    "bert": {"bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.bias"},
    "roberta": {"roberta.embeddings.word_embeddings.weight", "lm_head.decoder.bias"},
    "t5": {"shared.weight"},
    "mt5": {"shared.weight", "lm_head.weight"},
}
MOMENTS = ("exp_avg", "exp_avg_sq")


def settings(**train: Any) -> TrainConfig:
    return TrainConfig.model_validate_json(json.dumps({"steps": 1, "lora": {"r": 4}, **train}))


def build(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = model_from_config(kind, CONFIGS[kind]())
    if kind == "mt5":  # as the hub has it; transformers draws it tied
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_step_moves_every_use_of_a_shared_table_alike(kind: str, tmp_path: Path) -> None:
    model, train = make_trainable(build(kind), settings(learning_rate=0.1), 1), settings()
    names = {plain_name(n): p for n, p in trained_parameters(model).items()}
    assert {n for n in names if "lora_" not in n} == TABLES[kind] and len(names) == len(trained_parameters(model))
    optimizer = torch.optim.AdamW(parameter_groups(model, train), lr=0.1)
    ids = torch.arange(24)[None]
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids.flip(1)} if kind.endswith("t5") else {})
    model(**inputs).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in names.items() if n in TABLES[kind])
    optimizer.step()
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert is_tied(base) == (kind != "mt5")
    if kind.endswith("t5"):
        assert base.encoder.embed_tokens.weight is base.decoder.embed_tokens.weight is base.shared.weight
    moments = {f"{n}/{key}": torch.ones_like(p) for n, p in trained_parameters(model).items() for key in MOMENTS}
    save(Place(tmp_path), TrainState(step=1), trained_parameters(model), moments)
    found, _ = newest(Place(tmp_path))
    assert found is not None and {plain_name(n) for n in found.trainable()} == {*names}


@pytest.mark.parametrize("kind", CONFIGS)
def test_full_training_has_each_parameter_once_and_is_saved_as_the_base_was(kind: str, tmp_path: Path) -> None:
    model = make_trainable(build(kind), settings(lora=None), 1)
    trained = trained_parameters(model)
    assert len({id(p) for p in trained.values()}) == len(trained) == len(list(model.parameters()))
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert is_tied(again) == (kind != "mt5") and json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] == is_tied(again)
    assert {n for n, _ in again.named_parameters()} == {*trained}
    assert all(torch.equal(p, trained[n]) for n, p in again.named_parameters())


def test_layers_are_frozen_in_encoder_and_decoder() -> None:
    first = trained_parameters(make_trainable(build("t5"), settings(lora=None, freeze={"first_layers": 1, "embeddings": True}), 1))
    stacks = {tuple(name.split(".")[:3]) for name in first if ".block." in name}
    assert stacks == {("encoder", "block", "1"), ("encoder", "block", "2"), ("decoder", "block", "1")}
    assert not any("relative_attention_bias" in name for name in first), "which all layers use, is one of the first"
    assert "shared.weight" not in first
    last = trained_parameters(make_trainable(build("t5"), settings(lora=None, freeze={"last_layers": 2, "parameters": ["shared.*"]}), 1))
    assert {tuple(name.split(".")[:3]) for name in last if ".block." in name} == {("encoder", "block", "0")}
    with pytest.raises(ConfigError, match="last_layers is 3, but T5ForConditionalGeneration has 2 layers"):
        make_trainable(build("t5"), settings(lora=None, freeze={"last_layers": 3}), 1)


def test_the_head_of_a_masked_model_can_be_trained_beside_lora() -> None:
    lora = {"r": 4, "modules_to_save": ["cls.predictions.transform"]}
    names = {plain_name(n) for n in trained_parameters(make_trainable(build("bert"), settings(lora=lora, embeddings="none"), 1))}
    beside = {n for n in names if ".lora_" not in n}
    assert beside == {f"cls.predictions.transform.{n}" for n in ("dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias")}
    assert all(".encoder.layer." in n for n in names - beside)
    with pytest.raises(ConfigError, match=r"'cls', but cls\.predictions\.decoder is an embedding or the head"):
        make_trainable(build("bert"), settings(lora={"r": 4, "modules_to_save": ["cls"]}), 1)
