"""What `zhlm model` says is what the real model has."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BloomConfig, GPT2Config, LlamaConfig, PretrainedConfig, ResNetConfig, RobertaConfig, T5Config

from zhlm.adapt.lora import count_parameters, make_trainable
from zhlm.config.schema import TrainConfig
from zhlm.errors import BaseModelError
from zhlm.model.describe import describe_base
from zhlm.model.load import model_from_config

CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(vocab_size=40, n_positions=24, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0),
    "llama": LlamaConfig(
        vocab_size=1040, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
    ),
    "bloom": BloomConfig(vocab_size=40, hidden_size=16, n_layer=3, n_head=2),
    "bert": BertConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2),
    "roberta": RobertaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=66,
    ),
    "t5": T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_decoder_layers=2, num_heads=2),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_those_of_training(name: str, tmp_path: Path) -> None:
    CONFIGS[name].save_pretrained(tmp_path)
    text = describe_base(str(tmp_path))
    for embeddings in ("none", "all"):
        train = TrainConfig.model_validate_json(json.dumps({"steps": 1, "embeddings": embeddings}))
        model = make_trainable(model_from_config(name, CONFIGS[name]), train, 1)
        assert f" {count_parameters(model)['trained']:,}" in text
    whole = model_from_config(name, CONFIGS[name])
    assert f"  parameters   {sum(p.numel() for p in whole.parameters()):,}\n" in text
    assert all(parameter.device == torch.device("cpu") for parameter in whole.parameters()), "meta is not left on"


def test_names_sizes_and_targets_are_listed(tmp_path: Path) -> None:
    CONFIGS["llama"].save_pretrained(tmp_path)
    lines = describe_base(str(tmp_path)).splitlines()
    assert lines[0] == f"{tmp_path}: LlamaForCausalLM"
    assert "  embeddings   16,640   model.embed_tokens, 1,040 rows of 16" in lines and "  head         16,640   lm_head" in lines
    assert "model.layers.*.self_attn.k_proj   16 -> 8       3        auto" in lines
    assert "lm_head                           16 -> 1,040   1" in lines
    CONFIGS["gpt2"].save_pretrained(tmp_path)
    lines = describe_base(str(tmp_path)).splitlines()
    assert "  head         tied     lm_head, the embeddings again" in lines and "  positions    24" in lines
    assert "transformer.h.*.attn.c_attn   16 -> 48   3        auto" in lines


def test_masked_and_encoder_decoder_models_are_listed(tmp_path: Path) -> None:
    CONFIGS["bert"].save_pretrained(tmp_path)
    lines = describe_base(str(tmp_path)).splitlines()
    assert lines[0] == f"{tmp_path}: BertForMaskedLM"
    assert "  head         tied     cls.predictions.decoder, the embeddings again, with a bias" in lines
    assert "cls.predictions.transform.dense               16 -> 16   1" in lines, "the head's own layer is no target"
    assert "bert.encoder.layer.*.attention.self.query     16 -> 16   3        auto" in lines
    CONFIGS["roberta"].save_pretrained(tmp_path)
    assert "  positions    64" in describe_base(str(tmp_path)).splitlines(), "counted from behind the id of padding"
    CONFIGS["t5"].save_pretrained(tmp_path)
    text = describe_base(str(tmp_path))
    names = "shared (and encoder.embed_tokens, decoder.embed_tokens), 40 rows of 16"
    assert names in text and "encoder.block, 3 layers" in text and "decoder.block, 2 layers" in text and "no limit" in text
    assert "lm_head, the embeddings again\n" in text
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["t5"].to_dict() | {"tie_word_embeddings": False}))
    heads = [line.split() for line in describe_base(str(tmp_path)).splitlines() if line.startswith("  head")]
    assert heads == [["head", "640", "lm_head"]], "T5 1.1, for which transformers says tied"


def test_a_base_that_cannot_be_trained_is_one_line(tmp_path: Path) -> None:
    ResNetConfig().save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match=r"is no language model: Unrecognized configuration class") as caught:
        describe_base(str(tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BaseModelError, match=r"has no config\.json"):
        describe_base(str(tmp_path))


def test_of_a_hub_model_no_weights_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CONFIGS["llama"].save_pretrained(tmp_path)
    asked: list[object] = []

    def snapshot(name: str, **settings: object) -> str:
        asked.append(settings.get("allow_patterns"))
        if settings.get("local_files_only"):
            raise FileNotFoundError(name)
        return str(tmp_path)

    monkeypatch.setattr("zhlm.model.load.snapshot_download", snapshot)
    assert describe_base("some/model").startswith("some/model: LlamaForCausalLM")
    assert [a for a in asked if a] == [["*.json", "*.txt", "*.model", "*.jinja"]]
