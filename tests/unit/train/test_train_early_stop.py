"""When training ends early, and that a restart at any place does not change it."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import run_data
from zhlm.config.schema import RunConfig
from zhlm.train.early_stop import EarlyStop
from zhlm.train.validate import new_bits_per_byte


def config_of(early_stop: Any) -> RunConfig:
    data = run_data(Path("/nowhere"), early_stop=early_stop)
    data["streams"].append({"name": "poems", "paths": ["x"], "role": "new"})
    return RunConfig.model_validate_json(json.dumps(data))


def scores(zh: float, poems: float, en: float = 9.9) -> dict[str, dict[str, float]]:
    return {"zh": {"bits_per_byte": zh}, "poems": {"bits_per_byte": poems}, "en": {"bits_per_byte": en}}


def ends_after(values: list[float], **rule: Any) -> int | None:
    """How many measurements there are before training ends."""
    stop = EarlyStop(config_of(rule), [])
    for number, value in enumerate(values, 1):
        stop.note(scores(value, value))
        if stop.due:
            return number
    return None


def test_the_measure_is_the_mean_of_the_streams_to_learn() -> None:
    assert new_bits_per_byte(scores(2.0, 3.0, en=0.1), config_of(None).streams) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("values", "rule", "expected"),
    [
        ([3.0, 2.5, 2.6, 2.55], {"patience": 2}, 4),
        ([3.0, 2.5, 2.6, 2.4, 2.5, 2.4], {"patience": 2}, 6),
        ([3.0, 2.9, 2.8, 2.7], {"patience": 1}, None),
        ([3.0, 2.95, 2.91, 2.89], {"patience": 2, "min_delta": 0.1}, 3),
        ([3.0, 2.95, 2.89, 2.85], {"patience": 2, "min_delta": 0.1}, None),
        ([3.0, 3.0], {"patience": 1}, 2),
    ],
)
def test_training_ends_when_the_bits_fall_no_more(values: list[float], rule: dict[str, Any], expected: int | None) -> None:
    assert ends_after(values, **rule) == expected


def test_without_a_rule_nothing_ends() -> None:
    stop = EarlyStop(config_of(None), [])
    for _ in range(50):
        stop.note(scores(3.0, 3.0))
    assert not stop.due


@pytest.mark.parametrize("restart", range(7))
def test_a_restart_at_any_place_ends_at_the_same_step(restart: int) -> None:
    values = [3.0, 2.5, 2.6, 2.4, 2.5, 2.45, 2.41]
    rows: list[dict[str, Any]] = []
    for number, value in enumerate(values):
        rows += [{"step": number * 4, "loss_nats": 1.0}, {"step": number * 4, "validation": scores(value, value)}]
    stop = EarlyStop(config_of({"patience": 3}), json.loads(json.dumps([r for r in rows if r["step"] <= restart * 4])))
    for value in values[restart + 1 :]:
        assert not stop.due
        stop.note(scores(value, value))
    assert stop.due
