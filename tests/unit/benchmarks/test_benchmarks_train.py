"""What the training benchmarks make of their measurements, and which combinations cover all pairs."""

from pathlib import Path

import pytest

from benchmarks.matrix import AXES, covering, every
from benchmarks.train import DROPPED_STEPS, against, largest_difference, step_seconds
from benchmarks.train_start import breakdown, mark


def test_step_seconds_leave_out_the_first_steps_however_they_are_told() -> None:
    steps = [9.0] * DROPPED_STEPS + [0.1, 0.3] * 20
    told = [sum(steps[: n + 1]) for n in range(len(steps))]
    assert step_seconds({"step_s": steps}) == pytest.approx(0.2, abs=0.03)
    assert step_seconds({"told_s": told}) == pytest.approx(step_seconds({"step_s": steps}))


def test_a_ratio_is_that_of_medians_beside_its_goal() -> None:
    assert against("step/one", [1.04, 9.0, 1.0], [1.0, 1.0, 0.1]) == {
        "ratio": 1.04, "goal": 1.05, "met": True, "ours": [1.04, 9.0, 1.0], "theirs": [1.0, 1.0, 0.1],
    }  # fmt: skip
    assert not against("step/one", [1.06], [1.0])["met"]
    assert largest_difference([1.0, 2.0], [1.0, 2.5]) == 0.5
    with pytest.raises(AssertionError, match="1 losses against 2"):
        largest_difference([1.0], [1.0, 2.0])


def test_phases_of_a_start_add_up_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark(tmp_path / "marks", "imports", 2.0)
    assert (tmp_path / "marks").read_text(encoding="utf-8") == '["imports", 2.0]\n'
    found = breakdown([{"first_step_s": 7.0, "marks": [("imports", 2.0), ("workers", 5.5), ("after it", 8.0)]}])
    assert found == {"imports": 2.0, "workers": 3.5, "first row written": 1.5} and sum(found.values()) == 7.0
    assert "3.50 s  workers" in capsys.readouterr().err


def test_few_combinations_have_every_pair() -> None:
    few = covering()
    assert len(every()) == 288 and len(few) == len(AXES["zero"]) * len(AXES["method"])
    assert set().union(*(one.pairs for one in few)) == set().union(*(one.pairs for one in every()))
    assert covering() == few, "the same ones each time"
    assert len({one.name for one in every()}) == 288
