"""A checkpoint becomes folders that load without zhlm, for every class of model and every way of training it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig

from conftest import VOCABULARY, run_data, save_tiny_llama
from zhlm.checkpoint.state import TrainState, save
from zhlm.config.schema import RunConfig
from zhlm.export import job
from zhlm.model.load import load_base
from zhlm.model.lora import make_trainable, trained_parameters
from zhlm.storage import Run

CONFIGS = {
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1),
    "llama": LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        pad_token_id=2,
    ),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2),
}  # fmt: skip
TABLES = {
    "gpt2": {"transformer.wte.weight"},
    "llama": {"model.embed_tokens.weight", "lm_head.weight"},
    "bloom": {"transformer.word_embeddings.weight"},
}
LAST_NORM = {"gpt2": "ln_f", "llama": "norm", "bloom": "ln_f"}


def trained(folder: Path, kind: str, scratch: bool, train: dict[str, Any]) -> RunConfig:
    """A run with a checkpoint in which every trained weight moved."""
    save_tiny_llama(folder / "base")  # for its tokenizer
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(folder / "base")
    data = run_data(folder, **json.loads(json.dumps(train).replace("NORM", LAST_NORM[kind])))
    data["base"]["from_scratch"] = scratch
    config = RunConfig.model_validate_json(json.dumps(data))
    model = make_trainable(load_base(config, str(folder / "base")), config.train, config.seed)
    with torch.no_grad():
        values = {name: p + 0.1 * torch.randn_like(p) for name, p in trained_parameters(model).items()}
    moments = {f"{name}/{key}": torch.zeros_like(p) for name, p in values.items() for key in ("exp_avg", "exp_avg_sq")}
    save(Run.of(config).checkpoints, TrainState(step=8), values, moments)
    return config


WAYS: dict[str, tuple[bool, dict[str, Any]]] = {
    "dora": (False, {"lora": {"r": 4, "dora": True, "rslora": True, "dropout": 0.1, "modules_to_save": ["NORM"]}}),
    "pattern": (False, {"lora": {"r": 4, "targets": r".*\.1\..*", "plus_ratio": 16.0}, "embeddings": "none"}),
    "frozen": (False, {"lora": None, "freeze": {"first_layers": 1, "embeddings": True}}),
    "scratch": (True, {"lora": None, "freeze": {"last_layers": 1}}),
}


@pytest.mark.parametrize(
    ("kind", "way"),
    [(k, w) for k in CONFIGS for w in WAYS if (k, w) not in {("gpt2", "frozen"), ("bloom", "scratch"), ("llama", "pattern")}],
)
# PEFT knows tied tables by their names; those of GPT-2 and BLOOM are tied nevertheless.
@pytest.mark.filterwarnings("ignore:You have requested .ensure_weight_tying.")
def test_both_folders_have_the_logits_of_training(kind: str, way: str, tmp_path: Path) -> None:
    scratch, train = WAYS[way]
    config = trained(tmp_path, kind, scratch, train)
    facts = job.run(config, lambda _: None)
    assert {k for k in facts if k.endswith("difference")} == {"merged_difference", *(["adapter_difference"] if train["lora"] else [])}
    assert max(facts[k] for k in facts if k.endswith("difference")) < 1e-5, "logits are compared by the stage itself"
    merged = AutoModelForCausalLM.from_pretrained(Run.of(config).export.path / "merged")
    base = load_base(config, str(tmp_path / "base"))
    assert {n: p.shape for n, p in merged.named_parameters()} == {n: p.shape for n, p in base.named_parameters()}, "tied as before"
    before = dict(base.named_parameters())
    moved = {n for n, p in merged.named_parameters() if not torch.equal(p, before[n])}
    layers = [{n for n in before if f".{i}." in n} for i in (0, 1)]
    if way == "frozen":
        assert moved == {*before} - layers[0] - TABLES[kind]
    elif way == "scratch":
        assert moved == {*before} - layers[1], "the frozen layer is as drawn, though no checkpoint has it"
    else:
        assert way != "pattern" or moved < layers[1]
        loaded = PeftModel.from_pretrained(base, Run.of(config).export.path / "adapter")
        assert loaded.peft_config["default"].use_dora == (way == "dora")
