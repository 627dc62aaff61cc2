import copy
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MT5Config,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
)

from zhlm.errors import BaseModelError
from zhlm.model.inspect import is_tied
from zhlm.model.load import load_model, model_from_config
from zhlm.model.resize import add_rows, fill_rows

SMALL = dict(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "llama_tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=40, n_positions=24, n_embd=16, n_layer=1, n_head=2),
    "bloom": BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2),
    "bert": BertConfig(**SMALL),
    "bert_untied": BertConfig(**SMALL, tie_word_embeddings=False),
    "roberta": RobertaConfig(**SMALL),
    "roberta_untied": RobertaConfig(**SMALL, tie_word_embeddings=False),
    "t5": T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
    "t5_scaled_not": T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, tie_word_embeddings=False),
    "mt5": MT5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
}


def create(kind: str) -> PreTrainedModel:
    model = model_from_config(kind, copy.deepcopy(CONFIGS[kind]))
    if kind in ("t5_scaled_not", "mt5"):  # as the hub has T5 1.1 and mT5; transformers draws them tied
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    if (bias := model.get_output_embeddings().bias) is not None:
        torch.nn.init.normal_(bias)
    return model


def logits_of(model: PreTrainedModel, *ids: int) -> torch.Tensor:
    rows = torch.tensor([ids])
    with torch.no_grad():
        logits: torch.Tensor = model(rows, **({"decoder_input_ids": rows} if model.config.is_encoder_decoder else {})).logits
    return logits


def marked(old_VD: torch.Tensor) -> torch.Tensor:
    """Seven new rows that differ, made from the old ones."""
    return old_VD[:7] * 2 + 1


@pytest.mark.parametrize("kind", CONFIGS)
def test_old_rows_and_logits_stay_and_the_folder_reloads(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create(kind).eval()
    tied = is_tied(model)
    logits_before = logits_of(model, 3, 1, 39, 12, 0)
    rows_in = model.get_input_embeddings().weight.detach().clone()
    rows_out = model.get_output_embeddings().weight.detach().clone()
    bias_before = copy.deepcopy(model.get_output_embeddings().bias)

    assert add_rows(model, 40, 7, marked, pad_to_multiple=16) == 48

    assert model.config.vocab_size == 48
    assert is_tied(model) is tied
    for now, before in ((model.get_input_embeddings().weight, rows_in), (model.get_output_embeddings().weight, rows_out)):
        assert torch.equal(now[:40], before)
        assert torch.equal(now[40:47], marked(before))
        assert torch.allclose(now[47:], before.mean(0))
    assert torch.equal(logits_of(model, 3, 1, 39, 12, 0)[..., :40], logits_before)
    bias = model.get_output_embeddings().bias
    if bias is not None:
        assert torch.equal(bias[:40], bias_before) and torch.allclose(bias[40:], bias_before.mean().expand(8))

    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert is_tied(again) is tied
    assert torch.equal(logits_of(again, 3, 44), logits_of(model, 3, 44))
    assert not hasattr(model.config, "scale_decoder_outputs") or again.config.scale_decoder_outputs == model.config.scale_decoder_outputs


def test_padding_rows_of_the_base_are_taken_first() -> None:
    model = create("llama")
    before = model.get_input_embeddings().weight.detach().clone()
    assert add_rows(model, 30, 7, marked) == 40
    now = model.get_input_embeddings().weight
    assert torch.equal(now[:30], before[:30])
    assert torch.equal(now[30:37], marked(before))
    assert torch.equal(now[37:], before[37:])


def test_half_precision_stays_and_is_averaged_in_float32() -> None:
    model = create("llama").to(torch.bfloat16)
    seen: list[torch.dtype] = []

    def mean(old_VD: torch.Tensor) -> torch.Tensor:
        seen.append(old_VD.dtype)
        return old_VD.mean(0, keepdim=True)

    assert add_rows(model, 40, 1, mean) == 41
    assert seen == [torch.float32, torch.float32]
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_twice_gives_the_same() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        model = create("gpt2")
        torch.manual_seed(len(weights))
        add_rows(model, 40, 7, marked, pad_to_multiple=64)
        weights.append(model.get_input_embeddings().weight)
    assert torch.equal(*weights)


def test_a_tokenizer_longer_than_the_embedding_is_refused() -> None:
    model = create("llama")
    with pytest.raises(BaseModelError, match="50 entries but the embedding only 40 rows"):
        add_rows(model, 50, 7, marked)


@pytest.mark.parametrize("kind", CONFIGS)
def test_new_rows_are_written_again_and_nothing_else(kind: str) -> None:
    model = create(kind)
    add_rows(model, 40, 7, lambda old_VD: old_VD[:7] * 0, pad_to_multiple=16)
    before = model.get_input_embeddings().weight.detach().clone()
    fill_rows(model, 40, 7, marked)
    once = model.get_input_embeddings().weight.detach().clone()
    assert torch.equal(once[:40], before[:40]) and torch.equal(once[47:], before[47:])
    assert torch.equal(once[40:47], marked(before))
    assert add_rows(model, 40, 7, marked, pad_to_multiple=16) == 48
    assert torch.equal(model.get_input_embeddings().weight, once)


def test_a_bias_of_the_head_starts_as_the_mean() -> None:
    model = create("llama")
    model.lm_head.bias = torch.nn.Parameter(torch.arange(40.0))
    add_rows(model, 40, 7, marked, pad_to_multiple=16)
    assert torch.equal(model.lm_head.bias, torch.cat([torch.arange(40.0), torch.full((8,), 19.5)]))


def test_a_head_that_would_not_grow_is_refused() -> None:
    model = create("llama")
    model.draft_head = torch.nn.Linear(16, 40)
    with pytest.raises(BaseModelError, match="LlamaForCausalLM has a separate head draft_head of 40 rows"):
        add_rows(model, 40, 7, marked)
    assert model.get_input_embeddings().weight.shape[0] == 40
