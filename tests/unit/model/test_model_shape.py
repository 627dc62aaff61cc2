"""Parameter counts from config.json alone equal those of the real classes."""

import copy
import json
from typing import Any

import pytest
import torch
import transformers as tf

from zhlm.adapt.lora import make_trainable, parameter_groups, plain_name, trained_parameters
from zhlm.config.schema import TrainConfig
from zhlm.errors import BaseModelError, ConfigError
from zhlm.model.inspect import block_counts, head_name, linear_names, table_names
from zhlm.model.load import model_from_config, model_positions
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
    "bert": tf.BertConfig(**SMALL, max_position_embeddings=64),
    "roberta": tf.RobertaConfig(**SMALL, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1),
    "t5": tf.T5Config(vocab_size=99, d_model=32, d_kv=12, d_ff=56, num_layers=3, num_decoder_layers=2, num_heads=4),
    "mt5": tf.MT5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=56, num_layers=3, num_heads=4),
}


def saved(config: tf.PretrainedConfig) -> dict[str, object]:
    return json.loads(config.to_json_string(use_diff=False))


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_equal_the_class(name: str) -> None:
    model = model_from_config(name, CONFIGS[name])
    shape = shape_of(saved(CONFIGS[name]))
    counted = parameters(shape)
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters())
    assert counted["embeddings"] == model.get_input_embeddings().weight.numel()
    assert shape.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_sizes_equal_those_of_the_class(name: str) -> None:
    model = model_from_config(name, CONFIGS[name])
    shape = shape_of(saved(CONFIGS[name]))
    assert named_parameters(shape) == {n: p.numel() for n, p in model.named_parameters()}
    assert list(linears(shape)) == linear_names(model)[0]
    assert block_counts(model) == shape.blocks
    assert (table_names(model)[0], head_name(model)) == (shape.embedding, shape.head) and shape.positions == model_positions(model)


TRAINED: list[dict[str, Any]] = [
    {"lora": {"r": 4}, "embeddings": "none"},
    {"lora": {"r": 4, "dora": True, "targets": ".*1.mlp.*"}},
    {"lora": {"r": 4, "modules_to_save": ["0.NORM"]}, "embeddings": "new_rows", "rate_factors": {".*new_rows": 2.0, ".*lora_A.*": 0.5}},
    {"lora": None, "freeze": {"first_layers": 1, "parameters": [".*norm.*"]}},
    {"lora": None, "freeze": {"last_layers": 2, "embeddings": True}},
]


NAMES = {"gpt2": ("ln_1", "mlp"), "bert": ("output.LayerNorm", "intermediate"), "roberta": ("output.LayerNorm", "intermediate")}
NAMES |= dict.fromkeys(("t5", "mt5"), ("layer.0.layer_norm", "layer.*Dense"))


@pytest.mark.parametrize("train", TRAINED, ids=range(len(TRAINED)))
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bloom", "bert", "roberta", "t5", "mt5"])
def test_trained_parameters_are_those_of_training(name: str, train: dict[str, Any]) -> None:
    norm, mlp = NAMES.get(name, ("input_layernorm", "mlp"))
    text = json.dumps({"steps": 1, **train}).replace("NORM", norm).replace(".*norm.*", f".*{norm}.*").replace("mlp", mlp)
    settings = TrainConfig.model_validate_json(text)
    model = make_trainable(model_from_config(name, CONFIGS[name]), settings, 1, range(90, 97))
    parameter_groups(model, settings)
    expected = {plain_name(n): p.numel() for n, p in trained_parameters(model).items()}
    assert trained_sizes(shape_of(saved(CONFIGS[name])), settings, 7) == expected


@pytest.mark.parametrize("train", TRAINED, ids=range(len(TRAINED)))
def test_mt5_as_the_hub_has_it_is_not_tied(train: dict[str, Any]) -> None:
    """transformers says tied of every T5, and loads T5 1.1 and mT5 with two matrices nevertheless."""
    model = model_from_config("mt5", copy.deepcopy(CONFIGS["mt5"]))
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    shape = shape_of(saved(CONFIGS["mt5"]) | {"tie_word_embeddings": False})
    assert sum(parameters(shape).values()) == sum(p.numel() for p in model.parameters()) and not shape.tied
    text = json.dumps({"steps": 1, **train}).replace("NORM", "layer.0.layer_norm").replace("mlp", "layer")
    settings = TrainConfig.model_validate_json(text)
    trained = {plain_name(n): p.numel() for n, p in trained_parameters(make_trainable(model, settings, 1, range(90, 97))).items()}
    assert trained_sizes(shape, settings, 7) == trained


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
    with pytest.raises(BaseModelError, match=r"'mamba' is not known; expected one of bert, bloom, gpt2, .*, qwen3, roberta, t5"):
        shape_of({"model_type": "mamba"})


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
