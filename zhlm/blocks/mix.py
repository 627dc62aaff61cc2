"""How the streams share a run: number of steps, and how often each stream is seen. Pure arithmetic, used by the plan and by training."""

import math
from collections.abc import Mapping

from zhlm.config.schema import RunConfig
from zhlm.errors import CorpusError


def shares_of(config: RunConfig) -> dict[str, float]:
    """Each stream's share of the trained blocks; blocks are full, so this is its share of the tokens too."""
    total = sum(s.weight for s in config.streams)
    return {s.name: s.weight / total for s in config.streams}


def steps_of(config: RunConfig, stream_blocks: Mapping[str, int]) -> int:
    """Optimizer steps of the run, given the training blocks of each stream.

    `epochs` counts passes over the stream with the most blocks: with zh 900 blocks at share 0.75, 2 epochs are 2 * 900 / 0.75 = 2400
    blocks in all, 600 of them from the other streams, however often those repeat.

    Raises: CorpusError when a stream has no block.
    """
    empty = next((s.name for s in config.streams if stream_blocks[s.name] == 0), None)
    if empty is not None:
        raise CorpusError(
            f"train: stream {empty} has 0 training blocks, expected at least 1; add text to its paths or lower pack.validation_share",
            stream=empty,
        )
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.epochs is not None, "the schema asks for steps or epochs"
    largest = max((s.name for s in config.streams), key=lambda name: stream_blocks[name])
    total_blocks = config.train.epochs * stream_blocks[largest] / shares_of(config)[largest]
    # 2400.0000000000005 blocks are 2400: without rounding, the sum of weights 0.7 + 0.3 could add a step.
    return max(1, math.ceil(round(total_blocks / config.train.global_batch_blocks, 6)))


def repeats_of(config: RunConfig, stream_blocks: Mapping[str, int], steps: int) -> dict[str, float]:
    """How often each stream is seen in so many steps: 3.2 is three times and a bit, 0.4 leaves most of it unseen."""
    total_blocks = steps * config.train.global_batch_blocks
    return {name: total_blocks * share / stream_blocks[name] for name, share in shares_of(config).items()}
