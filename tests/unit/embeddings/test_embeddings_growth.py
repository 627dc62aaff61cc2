import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig, PretrainedConfig, T5Config

from zhlm.embeddings.grow import growth_of
from zhlm.embeddings.growth import growth
from zhlm.embeddings.initialise import deviation_of, mean
from zhlm.model.load import model_from_config
from zhlm.model.resize import add_rows


def test_a_worked_example() -> None:
    """1,000 untied rows, 10 wide, and 30,000 parameters in the blocks; 200 rows more, and half as many tokens."""
    found = growth(parameters=50_000, width=10, rows_before=1000, rows_after=1200, tied=False, value_bytes=2, tokens_share=0.5)
    assert found.parameters == 2 * 200 * 10
    assert found.parameters_share == pytest.approx(0.08)
    assert found.weight_bytes == 8000
    assert found.training_bytes == 4000 * (2 + 2 + 12)
    assert found.step_time_share == pytest.approx(2000 / 40_000)
    assert found.text_time_share == pytest.approx(1.05 * 0.5 - 1)
    assert found.as_dict()["step_time_share"] == 0.05


def test_a_tied_matrix_grows_once_and_is_multiplied_once() -> None:
    found = growth(parameters=41_000, width=10, rows_before=1000, rows_after=1200, tied=True, positions=1000)
    assert (found.parameters, found.step_time_share) == (2000, 2000 / 40_000)
    assert growth(parameters=41_000, width=10, rows_before=1000, rows_after=1000, tied=True).text_time_share == 0


MODELS = {
    "llama": LlamaConfig(vocab_size=90, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2),
    "gpt2_tied": GPT2Config(vocab_size=90, n_positions=24, n_embd=16, n_layer=1, n_head=2),
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_of_a_model_it_is_exact(config: PretrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    before = model.num_parameters()
    heads = 1 if config.tie_word_embeddings else 2
    body = before - heads * 90 * 16 - (24 * 16 if heads == 1 else 0)
    add_rows(model, 90, 30, mean(30), pad_to_multiple=64)
    found = growth_of(model, 90, 0.5)
    assert found.rows == 128 - 90
    assert found.parameters == model.num_parameters() - before
    assert found.parameters_share == pytest.approx(found.parameters / before)
    assert found.weight_bytes == 2 * found.parameters
    assert found.step_time_share == pytest.approx(38 * 16 / (body + 90 * 16))


def test_a_bias_of_the_head_grows_and_the_copies_of_an_embedding_are_no_positions() -> None:
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    bert = model_from_config("bert", BertConfig(vocab_size=90, **small))
    before = bert.num_parameters()
    add_rows(bert, 90, 30, mean(30))
    assert growth_of(bert, 90, 0.5).parameters == bert.num_parameters() - before == 30 * (16 + 1)
    t5 = model_from_config("t5", T5Config(vocab_size=90, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    distances, before = 2 * 32 * 2, t5.num_parameters()
    assert growth_of(t5, 90, 0.5).parameters == 0
    add_rows(t5, 90, 30, mean(30))
    found = growth_of(t5, 90, 0.5)
    assert found.parameters == t5.num_parameters() - before == 30 * 16
    assert found.step_time_share == pytest.approx(30 * 16 / (before - distances))
    assert deviation_of(t5.config) == 1.0 and deviation_of(bert.config) == 0.02
