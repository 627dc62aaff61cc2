"""Step counts and rates: pure functions of the config."""

import math
from dataclasses import dataclass

from zhlm.config.schema import TrainConfig


def rate_factor(step: int, steps: int, train: TrainConfig) -> float:
    """Learning rate of a step (from 0), as a share of the peak. Rises linearly, then follows the schedule to `final_rate_share`."""
    warmup_steps = math.ceil(train.warmup_share * steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if train.schedule == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    shape = 1 - done if train.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return train.final_rate_share + (1 - train.final_rate_share) * shape


@dataclass(frozen=True)
class Share:
    """How a step's blocks are dealt to one worker."""

    micro_blocks: int
    accumulation: int
    """Forward-backward passes per step, the same on every rank."""


def share_of(global_batch_blocks: int, micro_batch_blocks: int, world_size: int) -> Share:
    """The global batch stays what it is, whatever the number of workers.

    Worked example: 16 blocks, 3 workers, 4 at a time: 6 each, so 2 passes of 3 blocks; two of the 18 places stay mute.
    """
    per_rank = math.ceil(global_batch_blocks / world_size)
    accumulation = math.ceil(per_rank / micro_batch_blocks)
    return Share(math.ceil(per_rank / accumulation), accumulation)


def deal(step: int, rank: int, world_size: int, global_batch_blocks: int, share: Share) -> list[list[int]]:
    """The global block indices of one rank's passes in a step; a pass may be short or empty, and is then filled with mute blocks."""
    first = step * global_batch_blocks
    own = list(range(first + rank, first + global_batch_blocks, world_size))
    return [own[i * share.micro_blocks : (i + 1) * share.micro_blocks] for i in range(share.accumulation)]
