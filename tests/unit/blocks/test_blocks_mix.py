"""Steps and repeats."""

import pytest

from zhlm.blocks.mix import repeats_of, shares_of, steps_of
from zhlm.config.schema import RunConfig
from zhlm.errors import CorpusError


def config(weights: dict[str, float], **train: object) -> RunConfig:
    streams = [{"name": n, "role": "new", "paths": ["x"], "weight": w} for n, w in weights.items()]
    data = {"name": "t", "base": {"model": "b"}, "streams": streams, "train": train}
    return RunConfig.model_validate(data)


def test_given_steps_stand() -> None:
    assert steps_of(config({"zh": 1.0}, steps=7), {"zh": 3}) == 7


def test_epochs_count_the_largest_stream_at_its_share() -> None:
    run = config({"zh": 3.0, "en": 1.0}, epochs=2.0, global_batch_blocks=16)
    assert shares_of(run) == {"zh": 0.75, "en": 0.25}
    assert steps_of(run, {"zh": 900, "en": 100}) == 150  # 2 * 900 / 0.75 = 2400 blocks
    assert repeats_of(run, {"zh": 900, "en": 100}, 150) == {"zh": 2.0, "en": 6.0}
    # The largest may be a lightly weighed one.
    assert steps_of(run, {"zh": 100, "en": 900}) == 450


def test_rounding_up_and_at_least_one() -> None:
    assert steps_of(config({"zh": 1.0}, epochs=1.0, global_batch_blocks=16), {"zh": 17}) == 2
    assert steps_of(config({"zh": 1.0}, epochs=0.001, global_batch_blocks=16), {"zh": 17}) == 1
    # 0.7 + 0.3 weighs in at 7 / 0.7 = 10.000000000000002 blocks.
    assert steps_of(config({"zh": 0.7, "en": 0.3}, epochs=1.0, global_batch_blocks=5, micro_batch_blocks=1), {"zh": 7, "en": 1}) == 2


def test_a_stream_without_blocks_is_named() -> None:
    with pytest.raises(CorpusError, match="stream en has 0 training blocks"):
        steps_of(config({"zh": 1.0, "en": 1.0}, steps=5), {"zh": 10, "en": 0})
