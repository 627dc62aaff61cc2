"""The rest of a document from its prefix, on decoder models (Llama, GPT-2 and others): the prefix is seen in both directions, the rest only
backwards, and only the rest is learned. Near to GLM with one blank at the end.

Documents of a block never see each other: positions restart at each, and a dense mask says who sees whom (what it takes: attention.py).
It would take the place of a sliding window, so blocks are refused that are longer than one.

Source: Raffel et al. 2020, section 3.2.1 (prefix LM). The length of a prefix is drawn for each document, as a share of it.

Shape letters: B blocks, T block tokens, D documents of a block, F its tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from zhlm.config.objective import PrefixConfig
from zhlm.objectives.attention import up_to
from zhlm.objectives.batch import IGNORED, Batch, BatchMaker, Ints, fills_of, ids_of, positions_of, random_of
from zhlm.records import Blocks


@dataclass(frozen=True)
class Prefix(BatchMaker):
    min_share: float
    max_share: float
    seed: int

    @classmethod
    def of(cls, config: PrefixConfig, tokenizer: Any, model_config: Any, seed: int) -> Self:
        """Which models cannot look ahead, `check_fits` knows; a tokenizer needs nothing for it."""
        return cls(config.min_share, config.max_share, seed)

    def make_batch(self, blocks: Blocks, keys: Sequence[int]) -> Batch:
        """Worked example: a block [a b c d | e f | pad] with prefixes of 2 and 1 tokens has positions [0 1 2 3 0 1 0] and targets
        [- c d - f - -]; a sees b, b sees a, c sees both, d sees all three, and e and f see none of them."""
        ids_BT = ids_of(blocks)
        positions_BT, fills_B = positions_of(blocks, ids_BT.shape[1]), fills_of(blocks)
        targets_BT = np.full_like(ids_BT, IGNORED)
        last_BT = np.tile(np.arange(ids_BT.shape[1]), (len(ids_BT), 1))  # the last place that each sees
        for b, (ends, key, fill) in enumerate(zip(blocks.ends, keys, fills_B.tolist(), strict=True)):
            prefix_F = self._ends_of_prefixes(ends, random_of(self.seed, key))
            targets_BT[b, : fill - 1] = ids_BT[b, 1:fill]
            targets_BT[b, ends.astype(np.int64) - 1] = IGNORED
            targets_BT[b, :fill][last_BT[b, :fill] < prefix_F] = IGNORED
            np.maximum(last_BT[b, :fill], prefix_F, out=last_BT[b, :fill])
        inputs = {
            "input_ids": torch.from_numpy(ids_BT),
            "attention_mask": up_to(last_BT, positions_BT),
            "position_ids": torch.from_numpy(positions_BT),
        }
        return Batch(inputs, torch.from_numpy(targets_BT), torch.from_numpy(fills_B))

    def _ends_of_prefixes(self, ends: npt.NDArray[np.uint32], random: np.random.Generator) -> Ints:
        """For each token of a block, the place of the last token of its document's prefix: what that predicts is the first target.
        Shapes: F."""
        lengths_D = np.diff(ends.astype(np.int64), prepend=0)
        shares_D = random.uniform(self.min_share, self.max_share, len(lengths_D))
        prefixes_D = np.clip(np.rint(shares_D * lengths_D).astype(np.int64), 1, np.maximum(lengths_D - 1, 1))
        return np.repeat(ends.astype(np.int64) - lengths_D + prefixes_D - 1, lengths_D)
