import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MT5Config,
    PretrainedConfig,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

from zhlm.model.inspect import block_counts, embedding_names, is_tied, linear_targets, table_names
from zhlm.model.load import model_from_config

SMALL = dict(
    vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8
)
BERT = dict(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
T5 = dict(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=1, num_heads=2)
GATED = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
CASES = [
    (LlamaConfig(**SMALL), GATED, ["embed_tokens", "lm_head"], False),
    (Qwen3Config(**SMALL, tie_word_embeddings=True), GATED, ["embed_tokens", "lm_head"], True),
    (GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2), ["c_attn", "c_fc", "c_proj"], ["wte", "lm_head"], True),
    (
        BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2),
        ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
        ["word_embeddings", "lm_head"],
        True,
    ),
    (BertConfig(**BERT), ["intermediate.dense", "key", "output.dense", "query", "value"], ["word_embeddings", "decoder"], True),
    (RobertaConfig(**BERT), ["intermediate.dense", "key", "output.dense", "query", "value"], ["word_embeddings", "decoder"], True),
    (T5Config(**T5), ["k", "o", "q", "v", "wi", "wo"], ["shared", "embed_tokens", "lm_head"], True),
    (MT5Config(**T5), ["k", "o", "q", "v", "wi_0", "wi_1", "wo"], ["shared", "embed_tokens", "lm_head"], True),
]


@pytest.mark.parametrize(("config", "targets", "embeddings", "tied"), CASES, ids=lambda v: getattr(v, "model_type", None))
def test_names(config: PretrainedConfig, targets: list[str], embeddings: list[str], tied: bool) -> None:
    model = model_from_config(config.model_type, config)
    assert linear_targets(model) == targets
    assert embedding_names(model) == embeddings
    assert is_tied(model) is tied


# PEFT itself reads the old name of an attribute that transformers renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("config", [case[0] for case in CASES], ids=lambda c: c.model_type)
def test_peft_wraps_exactly_the_blocks(config: PretrainedConfig) -> None:
    model = model_from_config(config.model_type, config)
    matrices = {n for n, p in model.named_parameters() if p.ndim == 2 and "relative_attention_bias" not in n}
    blocks = {n for n in matrices if any(part.isdigit() for part in n.split("."))}
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=linear_targets(model), fan_in_fan_out=config.model_type == "gpt2"))
    trained = {n.removeprefix("base_model.model.").replace(".lora_A.default", "") for n, p in wrapped.named_parameters() if "lora_A" in n}
    assert trained == blocks


def test_a_head_with_a_layer_of_the_same_name_is_left_out() -> None:
    # BERT's head holds a `dense` of its own, so the ending must be longer than in BLOOM.
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, is_decoder=True)
    model = AutoModelForCausalLM.from_config(config)
    targets = linear_targets(model)
    matched = {n for n, _ in model.named_modules() for t in targets if n == t or n.endswith(f".{t}")}
    assert matched and all(".layer.0." in n for n in matched)
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".layer." in n}
    assert matched == linear


def test_the_lists_of_blocks_and_the_tables_of_an_encoder_decoder() -> None:
    model = model_from_config("t5", T5Config(**T5))
    assert block_counts(model) == {"encoder.block": 2, "decoder.block": 1}
    assert table_names(model) == ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]
