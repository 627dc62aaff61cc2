"""Parameter counts from config.json alone equal those of the real classes."""

import json

import peft
import pytest
import transformers as tf

from zhlm.errors import BaseModelError
from zhlm.model.shape import lora_parameters, parameters, shape_of

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
def test_lora_equals_peft(name: str) -> None:
    shape = shape_of(saved(CONFIGS[name]))
    every = [m.name.split(".")[-1] for m in shape.linears]
    for targets in (every, every[:1]):
        model = tf.AutoModelForCausalLM.from_config(CONFIGS[name])
        lora = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=name.startswith("gpt2"))
        trainable, _ = peft.get_peft_model(model, lora).get_nb_trainable_parameters()
        assert lora_parameters(shape, 4, targets) == trainable
        if targets == every:
            assert lora_parameters(shape, 4, "auto") == trainable


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


def test_head_as_a_target() -> None:
    shape = shape_of(saved(CONFIGS["llama"]))
    assert lora_parameters(shape, 2, ["lm_head"]) == 2 * (32 + 99)


def test_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(BaseModelError, match=r"'t5' is not known; expected one of bloom, gpt2, llama, mistral, qwen2, qwen3"):
        shape_of({"model_type": "t5"})


def test_missing_size_is_named() -> None:
    with pytest.raises(BaseModelError, match="lacks 'hidden_size'"):
        shape_of({"model_type": "llama"})


def test_target_that_matches_nothing_lists_the_layers() -> None:
    with pytest.raises(BaseModelError, match=r"'c_attn' matches no layer of a llama model; there are self_attn\.q_proj"):
        lora_parameters(shape_of(saved(CONFIGS["llama"])), 8, ["c_attn"])
