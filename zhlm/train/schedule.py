"""Step counts and rates: pure functions of the config."""

import math
from dataclasses import dataclass

from zhlm.config.schema import TrainConfig


def rate_factor(step: int, steps: int, train: TrainConfig) -> float:
    """Learning rate of a step (from 0), as a share of the peak. Rises linearly, then follows the schedule to `final_rate_share`.

    Source: warmup-stable-decay is that of MiniCPM (Hu et al., 2024), its fall as 1 - sqrt that of Haegele et al., 2024, where it ended
    lower than a linear one. Both end at zero; ours ends where the other schedules do.
    """
    warmup_steps = _warmup_steps(steps, train)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    first = decay_start(steps, train)
    if step < first:
        return 1.0
    done = (step - first) / max(1, steps - 1 - first)
    shape = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "wsd": 1 - math.sqrt(done)}[train.schedule]
    return train.final_rate_share + (1 - train.final_rate_share) * shape


def decay_start(steps: int, train: TrainConfig) -> int:
    """The last step at the peak, from which the rate falls; `steps` where it never does."""
    if train.schedule == "constant":
        return steps
    warmup_steps = _warmup_steps(steps, train)
    return warmup_steps if train.schedule != "wsd" else max(warmup_steps, steps - 1 - math.ceil(train.decay_share * steps))


def _warmup_steps(steps: int, train: TrainConfig) -> int:
    return math.ceil(train.warmup_share * steps) if train.warmup_steps is None else train.warmup_steps


def steps_at_the_peak(steps: int, train: TrainConfig) -> int | None:
    """With `wsd`, the number of steps after which the rate falls: what is trained by then serves longer runs too."""
    return decay_start(steps, train) + 1 if train.schedule == "wsd" else None


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
