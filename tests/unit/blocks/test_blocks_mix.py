"""Steps and repeats."""

import pytest

from zhlm.blocks.mix import block_weights, check_weights, repeats_of, shares_of, steps_of
from zhlm.config.schema import RunConfig
from zhlm.errors import ConfigError, CorpusError


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


def test_weights_of_half_full_blocks() -> None:
    shares = block_weights({"zh": 3.0, "en": 1.0}, {"zh": 200.0, "en": 400.0})
    assert shares == pytest.approx({"zh": 6 / 7, "en": 1 / 7})
    assert 200 * shares["zh"] / (200 * shares["zh"] + 400 * shares["en"]) == pytest.approx(0.75)
    run = config({"zh": 3.0, "en": 1.0}, epochs=2.0, global_batch_blocks=10)
    assert steps_of(run, {"zh": 600, "en": 100}, shares) == 140
    assert repeats_of(run, {"zh": 600, "en": 100}, 140, shares) == pytest.approx({"zh": 2.0, "en": 2.0})


def test_a_weight_below_one_block_is_refused() -> None:
    run = config({"zh": 1.0, "en": 0.001}, steps=50, global_batch_blocks=16)
    with pytest.raises(
        ConfigError, match=r"stream en has the share 0.000999 of 800 blocks \(50 steps of 16\), which is less than one block; raise"
    ):
        check_weights(run, 50, {})
    check_weights(run, 63, {})


def test_more_passes_than_allowed_are_refused() -> None:
    run = config({"zh": 0.75, "en": 0.25}, epochs=1.0, global_batch_blocks=10)
    limited = run.model_copy(update={"streams": [run.streams[0], run.streams[1].model_copy(update={"max_repeats": 4.0})]})
    steps = steps_of(limited, {"zh": 900, "en": 60})
    assert steps == 120
    with pytest.raises(ConfigError) as caught:
        check_weights(limited, steps, {"zh": 900, "en": 60})
    assert str(caught.value) == (
        "train: stream en would be seen 5.00 times (60 blocks for a share of 300), its max_repeats is 4; "
        "lower its weight, add text to it, lower train.epochs, or raise max_repeats"
    )
    check_weights(limited, steps, {"zh": 900, "en": 75})
    check_weights(run, steps, {"zh": 900, "en": 60})
    check_weights(limited, steps, {"zh": 900})  # not counted yet
