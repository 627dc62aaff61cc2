import numpy as np
import pytest
import torch
from transformers import GPT2Config, T5Config

from zhlm.vocab import initialise
from zhlm.vocab.initialise import Mixture, deviation_of, mean, mean_noise, random, subword_mean


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
    assert deviation_of(T5Config()) == 0.02  # it has no such setting
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
