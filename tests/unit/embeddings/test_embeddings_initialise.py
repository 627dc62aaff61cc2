# ruff: noqa: F401, F811 - fixtures are imported by name
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from trained_tokenizers import chinese, gpt2_tokenizer, learned_on
from zhlm.embeddings import initialise
from zhlm.embeddings.initialise import Mixture, deviation_of, mean, mean_noise, random, subword_mean
from zhlm.model.resize import add_rows
from zhlm.pieces.bytelevel import is_text, to_bytes
from zhlm.pieces.extend import extend


class Spelled:
    def __init__(self, spellings: list[list[int]]) -> None:
        self._spellings = spellings

    def merge(self, batch: list[str]) -> list[list[int]]:
        assert len(batch) == len(self._spellings)
        return self._spellings


def old_rows(rows: int = 400, width: int = 6) -> torch.Tensor:
    """Correlated columns with a mean far from zero."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, width, generator=generator) @ torch.randn(width, width, generator=generator) + 3


def test_a_mixture_is_a_weighted_sum_and_the_mean_where_it_has_no_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialise, "ROWS_AT_ONCE", 2)
    old_VD = old_rows()
    rows_ND = Mixture.of([([3, 5], [0.25, 0.75]), ([], []), ([7], [2.0]), ([1, 1, 2], [1.0, 1.0, 1.0])])(old_VD)
    expected = [old_VD[3] / 4 + old_VD[5] * 3 / 4, old_VD.mean(0), 2 * old_VD[7], 2 * old_VD[1] + old_VD[2]]
    assert torch.allclose(rows_ND, torch.stack(expected), atol=1e-6)


def test_subword_mean_counts_a_repeated_piece_twice() -> None:
    old_VD = old_rows()
    rows_ND = subword_mean(["x", "y"], Spelled([[4, 4, 8], []]))(old_VD)
    assert torch.allclose(rows_ND, torch.stack([(2 * old_VD[4] + old_VD[8]) / 3, old_VD.mean(0)]), atol=1e-6)


def test_noise_has_the_old_rows_mean_and_covariance() -> None:
    old_VD = old_rows()
    rows_ND = mean_noise(40_000)(old_VD)
    assert torch.allclose(rows_ND.mean(0), old_VD.mean(0), atol=0.1)
    assert torch.allclose(torch.cov(rows_ND.T), torch.cov(old_VD.T), rtol=0.05, atol=0.1)
    assert not torch.allclose(rows_ND[0], rows_ND[1], atol=0.1)


@pytest.mark.parametrize("rows", [1, 3, 40], ids=["one_row", "fewer_rows_than_columns", "equal_columns"])
def test_noise_needs_no_covariance_that_can_be_inverted(rows: int) -> None:
    old_VD = old_rows(rows).repeat(1, 2)
    rows_ND = mean_noise(50)(old_VD)
    assert rows_ND.isfinite().all()
    assert torch.allclose(rows_ND[:, :6], rows_ND[:, 6:], atol=1e-4)
    if rows == 1:
        assert torch.equal(rows_ND, old_VD.expand(50, -1))


def test_noise_of_a_large_vocabulary_is_drawn_from_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialise, "NOISE_ROWS", 2000)
    old_VD = old_rows(6000)
    rows_ND = mean_noise(20_000)(old_VD)
    assert torch.allclose(rows_ND.mean(0), old_VD.mean(0), atol=0.1)
    assert torch.allclose(torch.cov(rows_ND.T), torch.cov(old_VD.T), rtol=0.1, atol=0.3)


def test_random_rows_have_the_deviation_of_the_models_config() -> None:
    deviation = deviation_of(GPT2Config(initializer_range=0.3))
    assert deviation == 0.3
    assert deviation_of(T5Config()) == 1.0, "T5 draws its tables by initializer_factor"
    rows_ND = random(2000, deviation)(old_rows())
    assert rows_ND.shape == (2000, 6)
    assert abs(rows_ND.mean()) < 0.02 and abs(rows_ND.std() - 0.3) < 0.01


@pytest.mark.parametrize("make", [lambda: mean_noise(5), lambda: random(5, 0.02)], ids=["mean_noise", "random"])
def test_what_is_drawn_is_the_same_twice_but_not_for_embedding_and_head(make: object) -> None:
    assert callable(make)
    old_VD = old_rows()
    first, second = make(), make()
    embedding, head = first(old_VD), first(old_VD)
    assert torch.equal(embedding, second(old_VD)) and torch.equal(head, second(old_VD))
    assert not torch.equal(embedding, head)


def test_no_new_piece_gives_no_row() -> None:
    for init in (mean(0), mean_noise(0), random(0, 0.02), subword_mean([], Spelled([]))):
        assert init(old_rows()).shape == (0, 6)


def test_mixtures_hold_no_python_objects() -> None:
    mixture = Mixture.of([([1, 2], [0.5, 0.5])] * 3)
    assert mixture.counts_N.tolist() == [2, 2, 2]
    assert mixture.old_ids_M.dtype == np.int64 and mixture.weights_M.dtype == np.float32


def test_subword_mean_is_the_mean_of_the_spelling(gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str]) -> None:
    base, learned = learned_on(gpt2_tokenizer, chinese)
    old_VD = torch.randn(len(gpt2_tokenizer), 8)
    rows_ND = subword_mean(learned.pieces, base)(old_VD)
    for piece, row_D in zip(learned.pieces, rows_ND, strict=True):
        if is_text(to_bytes(piece)):
            spelling = gpt2_tokenizer.encode(to_bytes(piece).decode(), add_special_tokens=False)
        else:
            spelling = [gpt2_tokenizer.get_vocab()[symbol] for symbol in piece]
        assert torch.allclose(row_D, old_VD[spelling].mean(0), atol=1e-6)
    assert torch.equal(mean(3)(old_VD), old_VD.mean(0).expand(3, -1))


MODELS = {
    "llama": LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2),
    "llama_tied": LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True),
    "gpt2": GPT2Config(n_positions=128, n_embd=16, n_layer=1, n_head=2),
    "bloom": BloomConfig(hidden_size=16, n_layer=1, n_head=2),
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_the_whole_folder_works_in_plain_transformers(
    config: PretrainedConfig, gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str], tmp_path: Path
) -> None:
    config.vocab_size = len(gpt2_tokenizer)
    config.bos_token_id = config.eos_token_id = gpt2_tokenizer.eos_token_id
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    base, learned = learned_on(gpt2_tokenizer, chinese, 50)
    ids = gpt2_tokenizer("The teacher reads.", return_tensors="pt")
    with torch.no_grad():
        before = model(**ids).logits
    add_rows(model, len(gpt2_tokenizer), 50, subword_mean(learned.pieces, base), pad_to_multiple=64)
    model.save_pretrained(tmp_path)
    extend(gpt2_tokenizer, base, learned).save_pretrained(tmp_path)

    again, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.config.vocab_size == again.get_input_embeddings().weight.shape[0] >= len(tokenizer)
    with torch.no_grad():
        assert torch.equal(again(**tokenizer("The teacher reads.", return_tensors="pt")).logits[..., : len(gpt2_tokenizer)], before)
        said = again.generate(**tokenizer(chinese[0][:20], return_tensors="pt"), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert len(tokenizer.decode(said[0])) > len(chinese[0][:20])
