"""Where new embedding rows start. The same rule serves the input embedding and an untied head, each with its own old rows; what is drawn
is drawn anew for the head.

Shape letters: V old rows, N new rows, D width, K old rows drawn from, M terms of all mixtures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from zhlm.model.resize import InitRows

SEED = 20
"""Of the drawn rows: two runs give the same model."""
NOISE_ROWS = 16_384
"""Old rows that noise is drawn from at most, which bounds its cost: 8,000 new rows, 8,192 wide, are 2 TFLOP."""
ROWS_AT_ONCE = 1024
USUAL_DEVIATION = 0.02
"""Where a config has none. Source: the default of most transformers classes."""


class Speller(Protocol):
    """What knows the old ids of a new piece."""

    def merge(self, batch: list[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class Mixture:
    """Every new row is a weighted sum of old ones."""

    counts_N: npt.NDArray[np.int64]
    """Terms of each sum; 0 gives the mean of all old rows."""
    old_ids_M: npt.NDArray[np.int64]
    weights_M: npt.NDArray[np.float32]

    @staticmethod
    def of(terms: Sequence[tuple[Sequence[int], Sequence[float]]]) -> "Mixture":
        """From old ids and their weights, for each new row."""
        return Mixture(
            np.asarray([len(ids) for ids, _ in terms], np.int64),
            np.asarray([row for ids, _ in terms for row in ids], np.int64),
            np.asarray([weight for _, weights in terms for weight in weights], np.float32),
        )

    def __call__(self, old_VD: torch.Tensor) -> torch.Tensor:
        new_ND = torch.zeros(len(self.counts_N), old_VD.shape[1])
        starts = np.concatenate([[0], np.cumsum(self.counts_N)])
        for at in range(0, len(self.counts_N), ROWS_AT_ONCE):
            counts = self.counts_N[at : at + ROWS_AT_ONCE]
            span = slice(starts[at], starts[at + len(counts)])
            which = torch.from_numpy(np.repeat(np.arange(len(counts)), counts) + at)
            terms_MD = old_VD[torch.from_numpy(self.old_ids_M[span])] * torch.from_numpy(self.weights_M[span])[:, None]
            new_ND.index_add_(0, which, terms_MD)
        if not self.counts_N.all():
            new_ND[torch.from_numpy(self.counts_N == 0)] = old_VD.mean(dim=0)
        return new_ND


def mean(num_pieces: int) -> InitRows:
    """Every new row is the mean of all old ones."""

    def init(old_VD: torch.Tensor) -> torch.Tensor:
        return old_VD.mean(dim=0).repeat(num_pieces, 1)

    return init


def subword_mean(pieces: list[str], base: Speller) -> Mixture:
    """Each new row is the mean of the old rows that spelled its piece: the model has met that sum of bytes and merges before.

    The spelling is that of the base's merges on the piece's bytes, so parts of a character are spelled like any other piece.
    """
    return Mixture.of([(spelling, [1 / len(spelling)] * len(spelling) if spelling else []) for spelling in base.merge(pieces)])


def mean_noise(num_pieces: int, seed: int = SEED) -> InitRows:
    """New rows are drawn from the normal distribution with the old rows' mean and covariance.

    The covariance is never formed: random sums of centred old rows have it by construction, so nothing has to be factored that rounding
    may have left without a root, or that has fewer old rows than its width.

    Source: the distribution is that of J. Hewitt, "Initializing New Word Embeddings for Pretrained Language Models" (2021).
    """

    generator = torch.Generator().manual_seed(seed)

    def init(old_VD: torch.Tensor) -> torch.Tensor:
        mean_D = old_VD.mean(dim=0)
        drawn = torch.randperm(len(old_VD), generator=generator)[:NOISE_ROWS].sort().values
        centred_KD = old_VD[drawn] - old_VD[drawn].mean(dim=0)
        new_ND = mean_D.repeat(num_pieces, 1)
        scale = 1 / math.sqrt(max(1, len(drawn) - 1))
        for at in range(0, num_pieces, ROWS_AT_ONCE):
            chunk = new_ND[at : at + ROWS_AT_ONCE]
            chunk += scale * torch.randn(len(chunk), len(drawn), generator=generator) @ centred_KD
        return new_ND

    return init


def random(num_pieces: int, deviation: float, seed: int = SEED) -> InitRows:
    """New rows as the model's own were before its training: normal around zero."""
    generator = torch.Generator().manual_seed(seed)

    def init(old_VD: torch.Tensor) -> torch.Tensor:
        return torch.randn(num_pieces, old_VD.shape[1], generator=generator) * deviation

    return init


def deviation_of(model_config: Any) -> float:
    """Standard deviation of a model's untrained embeddings, by its config; T5 has another name for it."""
    config = model_config.get_text_config()
    factor = getattr(config, "initializer_factor", USUAL_DEVIATION)
    return float(getattr(config, "initializer_range", factor))
