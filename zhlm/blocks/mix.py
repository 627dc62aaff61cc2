"""How the streams share a run: number of steps, and how often each stream is seen. Pure arithmetic, used by the plan and by training.

Weights are shares of tokens. Blocks of best_fit and concat are full, so that they are shares of the blocks too; without packing they become
that by `block_weights`.
"""

import math
from collections.abc import Mapping

from zhlm.config.schema import RunConfig
from zhlm.errors import ConfigError, CorpusError


def shares_of(config: RunConfig) -> dict[str, float]:
    """Each stream's share of the trained tokens."""
    total = sum(s.weight for s in config.streams)
    return {s.name: s.weight / total for s in config.streams}


def block_weights(weights: Mapping[str, float], tokens_per_block: Mapping[str, float]) -> dict[str, float]:
    """Shares of the blocks that give these shares of the tokens: a stream whose blocks are half as full is drawn twice as often."""
    drawn = {name: weight / tokens_per_block[name] for name, weight in weights.items()}
    total = sum(drawn.values())
    return {name: weight / total for name, weight in drawn.items()}


def steps_of(config: RunConfig, stream_blocks: Mapping[str, int], shares: Mapping[str, float] | None = None) -> int:
    """Optimizer steps of the run, given the training blocks of each stream; `shares` of the blocks where they are not those of the tokens.

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
    total_blocks = config.train.epochs * stream_blocks[largest] / (shares or shares_of(config))[largest]
    # 2400.0000000000005 blocks are 2400: without rounding, the sum of weights 0.7 + 0.3 could add a step.
    return max(1, math.ceil(round(total_blocks / config.train.global_batch_blocks, 6)))


def repeats_of(
    config: RunConfig, stream_blocks: Mapping[str, int], steps: int, shares: Mapping[str, float] | None = None
) -> dict[str, float]:
    """How often each stream is seen in so many steps: 3.2 is three times and a bit, 0.4 leaves most of it unseen."""
    total_blocks = steps * config.train.global_batch_blocks
    return {
        name: total_blocks * share / stream_blocks[name] for name, share in (shares or shares_of(config)).items() if name in stream_blocks
    }


def check_weights(config: RunConfig, steps: int, stream_blocks: Mapping[str, int], shares: Mapping[str, float] | None = None) -> None:
    """Refuse a weight that the run cannot reach. `stream_blocks` may lack streams that are not counted yet: their repeats are not checked.

    Raises: ConfigError naming the stream.
    """
    total_blocks = steps * config.train.global_batch_blocks
    for name, share in (shares or shares_of(config)).items():
        if total_blocks * share < 1:
            raise ConfigError(
                f"train: stream {name} has the share {share:.3g} of {total_blocks:,} blocks ({steps:,} steps of "
                f"{config.train.global_batch_blocks}), which is less than one block; raise its weight or train.steps, or remove the stream",
                stream=name,
            )
    repeats = repeats_of(config, stream_blocks, steps, shares)
    for stream in config.streams:
        seen = repeats.get(stream.name, 0.0)
        if stream.max_repeats is not None and seen > stream.max_repeats:
            raise ConfigError(
                f"train: stream {stream.name} would be seen {seen:.2f} times ({stream_blocks[stream.name]:,} blocks for a share of "
                f"{seen * stream_blocks[stream.name]:,.0f}), its max_repeats is {stream.max_repeats:g}; "
                f"lower its weight, add text to it, lower train.{'steps' if config.train.steps else 'epochs'}, or raise max_repeats",
                stream=stream.name,
            )
