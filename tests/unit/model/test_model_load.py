import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from conftest import run_data, save_tiny_llama
from tiny_bases import bert_folder, gpt2_folder, t5_folder
from zhlm.config.schema import RunConfig
from zhlm.errors import BaseModelError
from zhlm.model.load import (
    check_base,
    draw_model,
    embedding_rows,
    load_base,
    load_model,
    load_model_config,
    local_folder,
    model_positions,
)

SMALL = dict(
    vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8
)
CONFIGS = [
    (LlamaConfig(**SMALL, max_position_embeddings=64), 64),
    (Qwen2Config(**SMALL, max_position_embeddings=48), 48),
    (Qwen3Config(**SMALL, max_position_embeddings=32), 32),
    (GPT2Config(vocab_size=40, n_positions=24, n_embd=16, n_layer=1, n_head=2), 24),
    (BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2), None),
]


def save(config: PretrainedConfig, folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return model


@pytest.mark.parametrize(("config", "positions"), CONFIGS, ids=lambda v: getattr(v, "model_type", None))
def test_loads_each_class_with_its_weights_and_positions(config: PretrainedConfig, positions: int | None, tmp_path: Path) -> None:
    saved = save(config, tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded) is type(saved)
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))
    assert model_positions(loaded) == model_positions(loaded.config) == positions
    assert embedding_rows(loaded.config) == 40


def test_dtype_is_float32_or_as_saved(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(CONFIGS[0][0]).to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).dtype == torch.float32
    assert load_model(str(tmp_path), dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize(("config", "positions"), CONFIGS, ids=lambda v: getattr(v, "model_type", None))
def test_weights_are_drawn_by_the_seed_alone(config: PretrainedConfig, positions: int | None, tmp_path: Path) -> None:
    """On every rank, and again for the export: whatever was drawn before, and in any precision."""
    saved = save(config.__class__.from_dict(config.to_dict() | {"dtype": "bfloat16"}), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    first = draw_model(str(tmp_path), 7)
    torch.rand(5)
    state = torch.get_rng_state()
    again, other, half = draw_model(str(tmp_path), 7), draw_model(str(tmp_path), 8), draw_model(str(tmp_path), 7, dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state), "and disturb no other draw"
    assert type(first) is type(saved) and not first.training and first.dtype == torch.float32 and half.dtype == torch.bfloat16
    pairs = list(zip(first.parameters(), again.parameters(), half.parameters(), strict=True))
    assert all(torch.equal(a, b) and torch.equal(a.bfloat16(), c) for a, b, c in pairs)
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)


@pytest.mark.parametrize(("maker", "kind"), [(bert_folder, "BertForMaskedLM"), (t5_folder, "T5ForConditionalGeneration")])
def test_bert_and_t5_are_drawn_from_their_configs_alone(maker: Callable[[Path], object], kind: str, tmp_path: Path) -> None:
    maker(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    first, again = draw_model(str(tmp_path / "base"), 7), draw_model(str(tmp_path / "base"), 7)
    assert type(first).__name__ == kind
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_base_from_scratch_is_drawn_and_an_extended_one_loaded(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "base")
    scratch = {"base": {"model": str(tmp_path / "base"), "from_scratch": True}}
    data = run_data(tmp_path, lora=None)
    saved, drawn, extended = (
        load_base(RunConfig.model_validate_json(json.dumps(data | change)), str(tmp_path / "base"))
        for change in ({}, scratch, scratch | {"vocab": {}})
    )
    assert torch.equal(saved.lm_head.weight, extended.lm_head.weight), "drawn by the vocab stage already"
    assert torch.equal(drawn.lm_head.weight, draw_model(str(tmp_path / "base"), 7).lm_head.weight)
    assert not torch.equal(drawn.lm_head.weight, saved.lm_head.weight)


def test_a_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BaseModelError, match=r"gone does not exist; correct base\.model"):
        local_folder(str(tmp_path / "gone"))
    with pytest.raises(BaseModelError, match="does not exist"):
        local_folder("./no/such")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseModelError, match=r"the folder runs/base does not exist \(looked for .*/runs/base\)"):
        local_folder("runs/base")
    with pytest.raises(BaseModelError, match="neither a folder here nor a hub name"):
        local_folder("not a name!")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(BaseModelError, match="is a file, expected a folder"):
        local_folder(str(tmp_path / "model.safetensors"))


def test_a_hub_name_offline_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # No such host: the look-up fails at once, with or without a network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match="no folder here and the hub did not give it") as caught:
        load_model("nobody-here/no-such-model")
    assert "\n" not in str(caught.value)


def test_no_config_and_no_weights(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"has no config\.json"):
        load_model(str(tmp_path))
    save(CONFIGS[0][0], tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="has no weights"):
        load_model(str(tmp_path))


def test_torn_weights_and_a_torn_config(tmp_path: Path) -> None:
    save(CONFIGS[0][0], tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(BaseModelError, match=r"config\.json of .* cannot be read"):
        load_model_config(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "nobody"}')
    with pytest.raises(BaseModelError, match="nobody"):
        load_model_config(str(tmp_path))


def test_weights_that_differ_from_the_config(tmp_path: Path) -> None:
    save(CONFIGS[0][0], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(BaseModelError, match=r"lack 9 tensors of LlamaForCausalLM, such as model\.layers\.1\."):
        load_model(str(tmp_path))


def test_a_model_without_a_head(tmp_path: Path) -> None:
    BertModel(BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)).save_pretrained(
        tmp_path
    )
    with pytest.raises(BaseModelError, match=r"lack \d+ tensors of BertForMaskedLM, .*; copy the model again, or name one with a"):
        load_model(str(tmp_path))


def test_check_base_compares_tokenizer_and_embedding(tmp_path: Path) -> None:
    save(CONFIGS[0][0], tmp_path)
    check_base(str(tmp_path), None, 40)
    with pytest.raises(BaseModelError, match="has 41 entries but the embedding only 40 rows; use the tokenizer"):
        check_base(str(tmp_path), None, 41)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(BaseModelError, match="has no tokenizer"):
        check_base(str(tmp_path), None, 40)


@pytest.mark.parametrize(
    ("make", "objective", "other"),
    [(gpt2_folder, "prefix", "masked"), (bert_folder, "masked", "causal"), (t5_folder, "span_corruption", "causal")],
)
def test_the_class_is_the_one_for_the_objective(make: Callable[[Path], Path], objective: str, other: str, tmp_path: Path) -> None:
    """As saved, and from scratch by a config that names no class."""
    base = make(tmp_path / "base")
    written = json.loads((base / "config.json").read_text())

    def config(name: str, **of_base: Any) -> RunConfig:
        changes = {"objective": name, "base": {"model": str(base), **of_base}}
        return RunConfig.model_validate_json(json.dumps(run_data(tmp_path, lora=None) | changes))

    saved = load_base(config(objective), str(base))
    (name,) = written.pop("architectures")
    (base / "config.json").write_text(json.dumps(written))
    drawn = load_base(config(objective, from_scratch=True), str(base))
    assert type(saved).__name__ == type(drawn).__name__ == name
    with pytest.raises(BaseModelError, match=rf"is a {written['model_type']} model, which takes .*; objective is {other}"):
        load_base(config(other, from_scratch=True), str(base))
