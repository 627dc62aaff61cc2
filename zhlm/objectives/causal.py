"""Next-token prediction on packed blocks. Shape letters: B blocks, T block tokens, V vocabulary.

Documents of a block never see each other: positions restart at each one, and no attention mask is passed, because transformers builds the
block-diagonal mask from the positions only where there is no mask (an all-ones mask silently turns that off).
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch

from zhlm.records import Blocks

IGNORED = -100
WIDTH_STEP = 64
"""A batch is as wide as its longest block, rounded up to a multiple of this: few shapes, and such as matrix units like."""


@dataclass(frozen=True)
class Batch:
    """Model inputs of some blocks."""

    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    targets_BT: torch.Tensor
    """The token that follows each position; IGNORED at a document's last token and on padding."""
    fills_B: torch.Tensor
    """Tokens of each block, padding not counted."""

    @property
    def num_targets(self) -> int:
        return int((self.targets_BT != IGNORED).sum())

    @property
    def num_tokens(self) -> int:
        return int(self.fills_B.sum())

    def mute_after(self, rows: int) -> Self:
        """Nothing to learn behind the first `rows` rows: keeps the shape where a step's blocks do not divide by the ranks."""
        targets_BT, fills_B = self.targets_BT.clone(), self.fills_B.clone()
        targets_BT[rows:] = IGNORED
        fills_B[rows:] = 0
        return replace(self, targets_BT=targets_BT, fills_B=fills_B)

    def to(self, device: torch.device) -> Self:
        return type(self)(*(getattr(self, f.name).to(device) for f in fields(self)))


def make_batch(blocks: Blocks) -> Batch:
    """Worked example: a block [a b c | d e | pad] has positions [0 1 2 0 1 0] and targets [b c - e - -].

    Columns that are padding in every block are left out, so that short documents in blocks of their own do not cost what long ones do.
    """
    longest = max(int(ends[-1]) for ends in blocks.ends)
    ids_BT = blocks.ids_BT[:, : -(-longest // WIDTH_STEP) * WIDTH_STEP].astype(np.int64)
    positions_BT = np.zeros_like(ids_BT)
    targets_BT = np.full_like(ids_BT, IGNORED)
    fills_B = np.array([int(ends[-1]) for ends in blocks.ends], np.int64)
    for b, ends in enumerate(blocks.ends):
        start = 0
        for end in [*ends.tolist(), ids_BT.shape[1]]:  # the padding counts as one more document, without targets
            positions_BT[b, start:end] = np.arange(end - start)
            start = end
        targets_BT[b, : fills_B[b] - 1] = ids_BT[b, 1 : fills_B[b]]
        targets_BT[b, ends.astype(np.int64) - 1] = IGNORED
    return Batch(*(torch.from_numpy(a) for a in (ids_BT, positions_BT, targets_BT, fills_B)))


def sum_nats(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy of a batch's targets in nats, in float32."""
    logits_BTV = model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), batch.targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )
