import json

import pytest

from zhlm.evaluate.training_log import read_log, smoothed, thinned


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_curves_and_validation_are_told_apart():
    log = read_log(
        lines(
            {"step": 0, "validation": {"zh": {"bits_per_byte": 4.0}, "en": {"bits_per_byte": 0.7}}},
            {"step": 5, "loss_nats": 3.0, "workers": 2},
            {"step": 10, "loss_nats": 2.0, "workers": 2, "validation": {"zh": {"bits_per_byte": 2.0}}},
        )
    )
    assert log.curves["loss_nats"] == [(5, 3.0), (10, 2.0)]
    assert log.validation == {"zh": [(0, 4.0), (10, 2.0)], "en": [(0, 0.7)]}
    assert log.last("workers") == 2 and log.last("absent") is None
    assert log.steps == 10


def test_steps_logged_again_after_a_restart_count_once():
    log = read_log(lines({"step": 5, "loss_nats": 3.0}, {"step": 10, "loss_nats": 9.0}, {"step": 10, "loss_nats": 2.0}))
    assert log.curves["loss_nats"] == [(5, 3.0), (10, 2.0)]


def test_torn_rows_and_odd_values_are_left_out():
    text = lines({"step": 5, "loss_nats": 3.0, "note": "x", "flag": True}, {"step": 6, "loss_nats": float("nan")}, {"no_step": 1})
    log = read_log(text + '{"step": 7, "loss_n')
    assert log.curves == {"loss_nats": [(5, 3.0)]}
    assert read_log("").steps == 0


@pytest.mark.parametrize("count", [1, 3, 10, 11, 999, 1000])
def test_thinning_keeps_the_ends_and_the_order(count):
    points = [(float(i), float(i) ** 2) for i in range(count)]
    found = thinned(points, 10)
    assert len(found) == min(count, 10)
    assert found[0] == points[0] and found[-1] == points[-1]
    assert found == sorted(found)


def test_smoothing_keeps_a_straight_line_and_the_start():
    points = [(float(i), 2.0 * i) for i in range(100)]
    found = smoothed(points, 0.1)
    assert [y for _, y in found[:90]] == pytest.approx([y for _, y in points[:90]])
    assert [x for x, _ in found] == [x for x, _ in points]
    assert smoothed([], 0.1) == []
