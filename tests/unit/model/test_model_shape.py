"""Parameter counts from config.json alone equal those of the real classes."""

import json
from typing import Any

import pytest
import transformers as tf

from zhlm.config.schema import TrainConfig
from zhlm.errors import BaseModelError, ConfigError
from zhlm.model.inspect import block_counts, linear_names, table_names
from zhlm.model.lora import make_trainable, parameter_groups, plain_name, trained_parameters
from zhlm.model.shape import linears, named_parameters, parameters, shape_of
from zhlm.model.trained import trained_sizes

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56, "vocab_size": 99}
CONFIGS = {
    "llama": tf.LlamaConfig(**SMALL),
    "llama_biased_tied": tf.LlamaConfig(
        **SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, num_key_value_heads=2, head_dim=16
    ),
    "mistral": tf.MistralConfig(**SMALL, num_key_value_heads=2),
    "qwen2": tf.Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": tf.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16),
    "qwen3_biased": tf.Qwen3Config(**SMALL, num_key_value_heads=4, head_dim=8, attention_bias=True),
    "gpt2": tf.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64, vocab_size=99),
    "gpt2_inner": tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=99, n_inner=48, tie_word_embeddings=False),
    "bloom": tf.BloomConfig(hidden_size=32, n_layer=3, n_head=4, vocab_size=99),
}


def saved(config: tf.PretrainedConfig) -> dict[str, object]:
    return json.loads(config.to_json_string(use_diff=False))


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_equal_the_class(name: str) -> None:
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name])
    shape = shape_of(saved(CONFIGS[name]))
    counted = parameters(shape)
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters())
    assert counted["embeddings"] == model.get_input_embeddings().weight.numel()
    assert shape.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_sizes_equal_those_of_the_class(name: str) -> None:
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name])
    shape = shape_of(saved(CONFIGS[name]))
    assert named_parameters(shape) == {n: p.numel() for n, p in model.named_parameters()}
    assert list(linears(shape)) == linear_names(model)[0]
    assert block_counts(model) == {shape.blocks: shape.layers} and table_names(model) == [shape.embedding, "lm_head"]


TRAINED: list[dict[str, Any]] = [
    {"lora": {"r": 4}, "embeddings": "none"},
    {"lora": {"r": 4, "dora": True, "targets": ".*1.mlp.*"}},
    {"lora": {"r": 4, "modules_to_save": ["0.NORM"]}, "embeddings": "new_rows", "rate_factors": {".*new_rows": 2.0, ".*lora_A.*": 0.5}},
    {"lora": None, "freeze": {"first_layers": 1, "parameters": [".*norm.*"]}},
    {"lora": None, "freeze": {"last_layers": 2, "embeddings": True}},
]


@pytest.mark.parametrize("train", TRAINED, ids=range(len(TRAINED)))
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bloom"])
def test_trained_parameters_are_those_of_training(name: str, train: dict[str, Any]) -> None:
    norm = "ln_1" if name == "gpt2" else "input_layernorm"
    text = json.dumps({"steps": 1, **train}).replace("NORM", norm).replace(".*norm.*", f".*{norm}.*")
    settings = TrainConfig.model_validate_json(text)
    model = make_trainable(tf.AutoModelForCausalLM.from_config(CONFIGS[name]), settings, 1, range(90, 97))
    parameter_groups(model, settings)
    expected = {plain_name(n): p.numel() for n, p in trained_parameters(model).items()}
    assert trained_sizes(shape_of(saved(CONFIGS[name])), settings, 7) == expected


def test_hub_config_of_qwen3_600m() -> None:
    """The file as the hub has it; the published size is 0.6B, 0.44B without embeddings."""
    shape = shape_of(
        {
            "model_type": "qwen3",
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": True,
        }
    )
    counted = parameters(shape)
    assert sum(counted.values()) == 596_049_920
    assert counted["head"] == 0


def test_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(BaseModelError, match=r"'t5' is not known; expected one of bloom, gpt2, llama, mistral, qwen2, qwen3"):
        shape_of({"model_type": "t5"})


def test_missing_size_is_named() -> None:
    with pytest.raises(BaseModelError, match="lacks 'hidden_size'"):
        shape_of({"model_type": "llama"})


def test_what_matches_nothing_is_refused_without_the_model() -> None:
    shape = shape_of(saved(CONFIGS["llama"]))
    for train, said in (
        ({"lora": {"targets": ["c_attn"]}}, r"targets names 'c_attn', expected a linear layer of a llama model; there are down_proj"),
        ({"lora": {"targets": ["lm_head"]}}, "names lm_head, which is trained whole, by train.embeddings: all"),
        ({"lora": None, "freeze": {"last_layers": 4}}, "freeze.last_layers is 4, but a llama model has 3 layers"),
        ({"lora": None, "rate_factors": {"x": 2}}, "rate_factors has the pattern 'x', expected a whole name of a trained parameter"),
    ):
        with pytest.raises(ConfigError, match=said):
            trained_sizes(shape, TrainConfig.model_validate_json(json.dumps({"steps": 1, **train})), 0)
