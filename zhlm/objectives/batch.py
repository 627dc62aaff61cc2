"""What an objective makes of some blocks, and what a model's predictions of it cost.

Shape letters: B blocks, T positions of the model's logits (for all but span corruption, those of the block), V vocabulary.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from zhlm.objectives.attention import as_numbers
from zhlm.records import Blocks

IGNORED = -100
"""The label of a position that is no target."""
WIDTH_STEP = 64
"""A batch is as wide as its longest block, rounded up to a multiple of this: few shapes, and such as matrix units like."""

ONE_TOKEN = np.array([1], np.uint32)
"""The ends of a block of nothing."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Model inputs of some blocks."""

    inputs: dict[str, torch.Tensor]
    """Keyword arguments of the model's forward."""
    targets_BT: torch.Tensor
    """What each position predicts, already shifted where the model predicts the next token; IGNORED where there is nothing to learn."""
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
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, targets_BT=self.targets_BT.to(device), fills_B=self.fills_B.to(device))


class BatchMaker(Protocol):
    """An objective, to those who train with it."""

    def make_batch(self, blocks: Blocks, keys: Sequence[int]) -> Batch:
        """`keys`: an integer for each block, from which alone its randomness comes (see `random_of`)."""

    def largest_batch(self, rows: int, block_tokens: int) -> Batch:
        """What takes the most memory of all that so many blocks can become; what is in it does not matter."""
        return self.make_batch(Blocks(np.zeros((rows, block_tokens), np.int64), [np.array([block_tokens], np.uint32)] * rows), [0] * rows)


def random_of(seed: int, key: int) -> np.random.Generator:
    """The randomness of one block. `key`: its place in the order of training, so that it is drawn anew in each pass and drawn the same
    after a restart with any number of workers; -1 - row for a held-out block."""
    return np.random.default_rng(np.random.SeedSequence([seed % (1 << 32), key % (1 << 64)]))


def filled_up(objective: BatchMaker, blocks: Blocks, keys: Sequence[int], micro_blocks: int) -> Batch:
    """A batch of so many rows, those behind the blocks mute: one token of nothing to learn. `keys`: of the blocks, see `BatchMaker`."""
    missing = micro_blocks - len(blocks.ends)
    ids_BT = np.pad(blocks.ids_BT, ((0, missing), (0, 0)))
    filled = Blocks(ids_BT, [*blocks.ends, *([ONE_TOKEN] * missing)])
    return objective.make_batch(filled, [*keys, *([0] * missing)]).mute_after(len(blocks.ends))


def ids_of(blocks: Blocks) -> Ints:
    """Token ids of a batch: columns that are padding in every block are left out, so that short documents in blocks of their own do not
    cost what long ones do. Shapes: BT."""
    longest = max(int(ends[-1]) for ends in blocks.ends)
    return blocks.ids_BT[:, : -(-longest // WIDTH_STEP) * WIDTH_STEP].astype(np.int64)


def fills_of(blocks: Blocks) -> Ints:
    """Shapes: B."""
    return np.array([int(ends[-1]) for ends in blocks.ends], np.int64)


def positions_of(blocks: Blocks, width: int) -> Ints:
    """Positions that restart at each document; the padding counts as one more. Shapes: BT."""
    positions_BT = np.zeros((len(blocks.ends), width), np.int64)
    for b, ends in enumerate(blocks.ends):
        start = 0
        for end in [*ends.tolist(), width]:
            positions_BT[b, start:end] = np.arange(end - start)
            start = end
    return positions_BT


def logits_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """What a model, also one inside DeepSpeed's engine or PEFT's wrapper, says of a batch. Shapes: BTV."""
    innermost = _innermost(model)
    cache = {"use_cache": False} if _takes_cache(innermost.__class__) else {}
    logits_BTV: torch.Tensor = model(**as_numbers(batch.inputs, innermost.dtype), **cache).logits
    return logits_BTV


def sum_nats(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy of a batch's targets in nats, in float32."""
    logits_BTV = logits_of(model, batch)
    return torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), batch.targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _innermost(model: Any) -> Any:
    """The transformers model inside DeepSpeed's engine and PEFT's wrapper, which take any argument."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@lru_cache
def _takes_cache(kind: type) -> bool:
    """Whether a model's forward knows `use_cache`, by itself or by passing on what it does not name."""
    taken = inspect.signature(kind.forward).parameters.values()  # type: ignore[attr-defined]
    return any(p.name == "use_cache" or p.kind is p.VAR_KEYWORD for p in taken)
