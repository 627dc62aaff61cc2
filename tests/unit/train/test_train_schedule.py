"""Rates, shares and the dealing of blocks: arithmetic that must hold for every number of workers."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhlm.config.schema import TrainConfig
from zhlm.train.schedule import Share, deal, decay_start, rate_factor, share_of, steps_at_the_peak


def rates(steps: int, **settings: Any) -> list[float]:
    train = TrainConfig(steps=steps, **settings)
    return [rate_factor(step, steps, train) for step in range(steps)]


def test_warmup_rises_in_equal_parts_to_the_peak_and_never_from_zero() -> None:
    assert rates(10, schedule="constant", warmup_share=0.4) == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 6])
    assert rates(3, schedule="constant", warmup_share=0.0) == [1.0, 1.0, 1.0]


def test_linear_falls_evenly_to_its_final_rate() -> None:
    assert rates(5, schedule="linear", warmup_share=0.0, final_rate_share=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    found = rates(5, schedule="cosine", warmup_share=0.0, final_rate_share=0.0)
    assert found == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0])


def test_wsd_stays_at_the_peak_until_its_last_steps() -> None:
    found = rates(10, schedule="wsd", warmup_share=0.2, decay_share=0.4, final_rate_share=0.0)
    assert found == pytest.approx([1 / 3, 2 / 3, *[1.0] * 4, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0.0])
    assert rates(10, schedule="wsd", decay_share=0.0) == rates(10, schedule="constant")
    train = TrainConfig(steps=10, schedule="wsd", warmup_share=0.2, decay_share=0.4)
    assert decay_start(10, train) == 5 and decay_start(10, train.model_copy(update={"schedule": "constant"})) == 10


def test_a_warm_up_in_steps_does_not_depend_on_their_number() -> None:
    assert rates(10, schedule="constant", warmup_steps=3) == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])
    assert rates(100, schedule="constant", warmup_steps=3)[:10] == rates(10, schedule="constant", warmup_steps=3)
    assert rates(2, schedule="wsd", warmup_steps=3) == pytest.approx([0.25, 0.5]), "a run that ends before"


def test_wsd_before_its_fall_does_not_depend_on_the_number_of_steps() -> None:
    """So a checkpoint from there serves any longer run, where the others have to begin anew."""
    short, long = (rates(steps, schedule="wsd", warmup_share=0.0, decay_share=0.2) for steps in (50, 500))
    peak = steps_at_the_peak(50, TrainConfig(steps=50, schedule="wsd", warmup_share=0.0, decay_share=0.2))
    assert peak == 40 and short[:40] == long[:40] and short[40] != long[40]
    assert steps_at_the_peak(50, TrainConfig(steps=50)) is None


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_the_warmup_comes_the_peak_then_the_way_down(schedule: str) -> None:
    found = rates(100, schedule=schedule, warmup_share=0.1, final_rate_share=0.1)
    assert found[10] == max(found) == 1.0 and found[-1] == pytest.approx(0.1)
    assert found[:11] == sorted(found[:11]) and found[10:] == sorted(found[10:], reverse=True)


@given(
    steps=st.integers(1, 60),
    schedule=st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    warmup=st.floats(0, 0.8),
    final=st.floats(0, 1),
)
def test_a_rate_is_always_a_share_of_the_peak(steps: int, schedule: str, warmup: float, final: float) -> None:
    found = rates(steps, schedule=schedule, warmup_share=warmup if schedule == "wsd" else warmup / 0.8, final_rate_share=final)
    assert all(0 <= f <= 1 + 1e-12 for f in found)
    assert any(f > 0 for f in found), "a run that never learns"


@pytest.mark.parametrize(
    ("batch", "micro", "world", "expected"),
    [
        (16, 4, 3, (3, 2)), (16, 4, 2, (4, 2)), (16, 4, 1, (4, 4)), (16, 16, 1, (16, 1)), (16, 4, 5, (4, 1)), (1, 4, 8, (1, 1)),
        (7, 2, 3, (2, 2)),
    ],
)  # fmt: skip
def test_shares(batch: int, micro: int, world: int, expected: tuple[int, int]) -> None:
    assert share_of(batch, micro, world) == Share(*expected)


sizes = st.tuples(st.integers(1, 70), st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6))


@given(sizes)
def test_every_block_of_a_step_is_dealt_once(size: tuple[int, int, int, int]) -> None:
    batch, micro, world, step = size
    share = share_of(batch, micro, world)
    dealt = [deal(step, rank, world, batch, share) for rank in range(world)]
    assert all(len(passes) == share.accumulation for passes in dealt), "ranks with fewer passes would leave the others waiting"
    assert all(len(indices) <= share.micro_blocks <= micro for passes in dealt for indices in passes)
    flat = list(itertools.chain.from_iterable(itertools.chain.from_iterable(dealt)))
    assert sorted(flat) == list(range(step * batch, (step + 1) * batch))


@given(sizes)
def test_few_places_stay_mute(size: tuple[int, int, int, int]) -> None:
    batch, micro, world, _ = size
    share = share_of(batch, micro, world)
    per_rank = math.ceil(batch / world)
    assert per_rank <= share.micro_blocks * share.accumulation < per_rank + share.accumulation


def test_consecutive_steps_follow_each_other_whatever_the_workers() -> None:
    seen: list[int] = []
    for step, world in enumerate((1, 3, 2, 5)):
        share = share_of(6, 2, world)
        seen += sorted(i for rank in range(world) for passed in deal(step, rank, world, 6, share) for i in passed)
    assert seen == list(range(24))
