"""Rows trained apart from their tables: the same model before, the same gradients, and a plain model after."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    BertConfig,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MT5Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

from conftest import VOCABULARY, run_data, save_tiny_llama
from zhlm.adapt.lora import make_trainable, merged, parameter_groups, trained_parameters
from zhlm.adapt.new_rows import as_peft_saves, is_split, join_rows, new_rows_of, split_rows
from zhlm.config.schema import RunConfig, TrainConfig
from zhlm.errors import ConfigError, RunError
from zhlm.model.inspect import is_tied
from zhlm.model.load import model_from_config
from zhlm.model.ties import unwarned
from zhlm.storage import Run

SMALL: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
BERT: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 48,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "llama_tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen3_tied": Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2),
    "bloom": BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2),
    "phi": PhiConfig(**SMALL),
    "bert": BertConfig(**BERT),
    "roberta": RobertaConfig(**BERT, pad_token_id=1),
    "t5": T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
    "mt5": MT5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
}
UNTIED = ("llama", "phi", "mt5")
ROWS = range(30, 37)
IDS = torch.arange(40).repeat(2)[None, 5:69]
TRAIN = TrainConfig.model_validate_json(json.dumps({"steps": 1, "lora": {"r": 4}, "embeddings": "new_rows"}))


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = model_from_config(name, copy.deepcopy(CONFIGS[name]))
    if name == "mt5":  # as the hub has it; transformers draws it tied
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    if (bias := model.get_output_embeddings().bias) is not None:
        torch.nn.init.normal_(bias)
    return model


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    decoder = {"decoder_input_ids": IDS[:, 8:40]} if model.config.is_encoder_decoder else {}
    logits: torch.Tensor = model(input_ids=IDS[:, :32], **decoder).logits
    return logits


def tables(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def gradients(model: PreTrainedModel) -> torch.Tensor:
    logits = logits_of(model)
    torch.nn.functional.cross_entropy(logits[0], IDS[0, 1:33]).backward()
    return logits.detach()


@pytest.mark.parametrize("name", CONFIGS)
def test_new_rows_get_the_gradients_that_they_would_get_in_the_table(name: str) -> None:
    whole, split = build(name), build(name)
    split_rows(split.requires_grad_(False), ROWS)
    assert torch.allclose(gradients(whole), gradients(split), atol=1e-6)
    parts = [split.get_input_embeddings(), split.get_output_embeddings()]
    assert is_tied(split) == (parts[0].new_rows is parts[1].new_rows) == (name not in UNTIED)
    for table, part in zip(tables(whole), parts, strict=True):
        assert table.grad is not None
        assert torch.allclose(part.new_rows.grad, table.grad[ROWS.start : ROWS.stop], atol=1e-6) and part.weight.grad is None
    bias = whole.get_output_embeddings().bias
    if bias is not None:
        assert torch.allclose(parts[1].new_bias.grad, bias.grad[ROWS.start : ROWS.stop], atol=1e-6) and parts[1].bias.grad is None


@pytest.mark.parametrize("rows", [range(4), range(36, 40), range(39, 40)], ids=str)
def test_rows_at_either_end(rows: range) -> None:
    whole, split = build("llama"), build("llama")
    split_rows(split, rows)
    assert torch.allclose(gradients(whole), gradients(split), atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_lora_and_new_rows_are_trained_and_nothing_else_moves(name: str, tmp_path: Path) -> None:
    model = make_trainable(build(name), TRAIN, 1, ROWS)
    assert isinstance(model, PeftModel) and is_split(model.get_base_model())
    rows = {n: p for n, p in trained_parameters(model).items() if ".lora_" not in n}
    biased = model.get_base_model().get_output_embeddings().bias is not None
    assert len(rows) == (2 if name in UNTIED else 1) + biased and all(n.endswith((".new_rows", ".new_bias")) for n in rows)
    assert parameter_groups(model, TRAIN)[1]["params"] == list(rows.values()), "with the rate of embeddings, without weight decay"
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = logits_of(model.eval())
        as_peft_saves(model, build(name)).save_pretrained(tmp_path, save_embedding_layers=False)
        with unwarned():
            loaded = PeftModel.from_pretrained(build(name), tmp_path).eval()
        assert torch.allclose(logits_of(loaded), expected, atol=1e-5)
        plain = merged(model)
        assert torch.allclose(logits_of(plain), expected, atol=1e-5)
    assert set(plain.state_dict()) == set(build(name).state_dict()) and is_tied(plain) == (name not in UNTIED)
    for before, after in zip(tables(build(name)), tables(plain), strict=True):
        changed = (before != after).any(dim=1)
        assert changed.nonzero().flatten().tolist() == list(ROWS)


def test_a_model_that_was_not_split_stays_as_it_is() -> None:
    model = build("llama")
    join_rows(model)
    assert not is_split(model) and all(torch.equal(a, b) for a, b in zip(tables(model), tables(build("llama")), strict=True))


def test_a_head_that_does_more_is_refused() -> None:
    adapted = TRAIN.model_copy(update={"lora": TRAIN.lora.model_copy(update={"targets": ["lm_head"]})})  # type: ignore[union-attr]
    expected = r"new_rows, but the Linear of LlamaForCausalLM has more than rows.*, and name no head in train\.lora\.targets"
    with pytest.raises(ConfigError, match=expected) as caught:
        make_trainable(build("llama"), adapted, 1, ROWS)
    assert "\n" not in str(caught.value)


def test_which_rows_are_new_is_what_the_vocab_stage_added(tmp_path: Path) -> None:
    config = RunConfig.model_validate_json(json.dumps(run_data(tmp_path, embeddings="new_rows") | {"vocab": {}}))
    run = Run.of(config)
    with pytest.raises(RunError, match="no finished vocab stage"):
        new_rows_of(config, run)
    save_tiny_llama(run.vocab.path)
    (run.vocab / "manifest.json").write_text(json.dumps({"facts": {"added": 9}}))
    assert new_rows_of(config, run) == range(VOCABULARY - 9, VOCABULARY)
    assert new_rows_of(config.model_copy(update={"train": config.train.model_copy(update={"embeddings": "all"})}), run) is None
