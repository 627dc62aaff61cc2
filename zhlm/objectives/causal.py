"""Next-token prediction on packed blocks. Shape letters: B blocks, T block tokens.

Documents of a block never see each other: positions restart at each one, and no attention mask is passed, because transformers builds the
block-diagonal mask from the positions only where there is no mask (an all-ones mask silently turns that off).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from zhlm.config.objective import CausalConfig
from zhlm.objectives.batch import IGNORED, Batch, BatchMaker, fills_of, ids_of, positions_of
from zhlm.records import Blocks


@dataclass(frozen=True)
class Causal(BatchMaker):
    """Each token from those before it in its document."""

    left_padding: bool = False
    """Padding stands in front of a block's documents, as generation has it. A document of its own, it is not seen in either place."""

    @classmethod
    def of(cls, config: CausalConfig, tokenizer: Any, model_config: Any, seed: int) -> Self:
        """There is nothing to choose, and nothing that a tokenizer could lack."""
        return cls()

    def make_batch(self, blocks: Blocks, keys: Sequence[int]) -> Batch:
        """Worked example: a block [a b c | d e | pad] has positions [0 1 2 0 1 0] and targets [b c - e - -]."""
        ids_BT, fills_B = ids_of(blocks), fills_of(blocks)
        width = ids_BT.shape[1]
        positions_BT = positions_of(blocks, width)
        targets_BT = np.full_like(ids_BT, IGNORED)
        for b, ends in enumerate(blocks.ends):
            targets_BT[b, : fills_B[b] - 1] = ids_BT[b, 1 : fills_B[b]]
            targets_BT[b, ends.astype(np.int64) - 1] = IGNORED
        if self.left_padding:
            from_BT = (np.arange(width) + fills_B[:, None]) % width
            ids_BT, positions_BT, targets_BT = (np.take_along_axis(a, from_BT, 1) for a in (ids_BT, positions_BT, targets_BT))
        inputs = {"input_ids": torch.from_numpy(ids_BT), "position_ids": torch.from_numpy(positions_BT)}
        return Batch(inputs, torch.from_numpy(targets_BT), torch.from_numpy(fills_B))
