"""The rows of another tokenizer: those of the old one in their new places, and starts for the others. It serves the input embedding, an
untied head and a head's bias alike, each with its own old rows.

Shape letters: V old rows, W new rows, D width.
"""

from collections.abc import Mapping, Sequence

import torch

from zhlm.embeddings.initialise import Mixture, mean, mean_noise, random
from zhlm.model.resize import InitRows


def rows_for(num_rows: int, same: Mapping[int, int], spelled: Mapping[int, Sequence[int]], init: str, deviation: float) -> InitRows:
    """What makes all rows W from the old ones V: new id -> old id in `same`, new id -> the old ids that spell it in `spelled`, which start
    by `init` (subword_mean, mean, mean_noise or random); ids without a token, and padding, are the mean of the old rows."""
    made = sorted(spelled)
    shares = [(spelled[row], [1 / len(spelled[row])] * len(spelled[row])) if spelled[row] else ([], []) for row in made]
    ways: dict[str, InitRows] = {
        "subword_mean": Mixture.of(shares),
        "mean": mean(len(made)),
        "mean_noise": mean_noise(len(made)),
        "random": random(len(made), deviation),
    }

    def remake(old_VD: torch.Tensor) -> torch.Tensor:
        new_WD = mean(num_rows)(old_VD)
        new_WD[list(same)] = old_VD[list(same.values())]
        new_WD[made] = ways[init](old_VD)
        return new_WD

    return remake
