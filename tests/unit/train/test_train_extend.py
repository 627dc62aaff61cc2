"""More steps than before: what of a finished training serves the longer one."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import run_data
from zhlm.checkpoint.state import prune
from zhlm.config.schema import RunConfig
from zhlm.config.stages import reads
from zhlm.pipeline import _start_folder, _Task
from zhlm.storage import MANIFEST, STARTED, Place, Run
from zhlm.train.extend import keep_what_serves, steps_in_common


def parts(steps: int | None = 100, **train: Any) -> dict[str, Any]:
    length = {"steps": None, "epochs": 1.0} if steps is None else {"steps": steps}
    config = RunConfig.model_validate_json(json.dumps(run_data(Path("/nowhere"), **length, **train)))
    return {"config": reads(config, "train"), "files": {"base.model": "abc"}, "from": {"pack": "def"}}


WSD = {"schedule": "wsd", "warmup_steps": 10, "decay_share": 0.2}


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (parts(100, **WSD), parts(300, **WSD), 80),  # 20 of the 100 fall
        (parts(300, **WSD), parts(100, **WSD), 80),
        (parts(100, schedule="constant", warmup_steps=5), parts(300, schedule="constant", warmup_steps=5), 100),
        (parts(300, schedule="constant", warmup_share=0.0), parts(100, schedule="constant", warmup_share=0.0), 100),
        (parts(100, schedule="constant"), parts(300, schedule="constant"), 0),  # the warm-up is a share of the steps
        (parts(100, schedule="cosine", warmup_steps=5), parts(300, schedule="cosine", warmup_steps=5), 6),  # the peak is reached alike
        (parts(100, **WSD), parts(300, **WSD, learning_rate=1.0), 0),
        (parts(100, **WSD), parts(300, **WSD) | {"from": {"pack": "other blocks"}}, 0),
        (parts(None, **WSD), parts(300, **WSD), 0),
    ],
)
def test_steps_in_common(before: dict[str, Any], now: dict[str, Any], expected: int) -> None:
    assert steps_in_common(before, now) == expected


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    for name in ("step_00000060", "step_00000080", "step_00000100"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "progress.json").write_text("{}")
    for name in (MANIFEST, STARTED):
        (tmp_path / "checkpoints" / name).write_text("{}")
    return Place(tmp_path / "checkpoints")


def test_checkpoints_from_before_the_fall_stay(folder: Place) -> None:
    assert keep_what_serves(folder, parts(100, **WSD), parts(300, **WSD)) == 80
    assert folder.names() == sorted([STARTED, "step_00000060", "step_00000080"]), "and the stage is no longer finished"


def test_the_checkpoint_from_before_the_fall_outlives_later_ones(folder: Place) -> None:
    prune(folder, 1, last_step=80, keep_step=60)
    assert folder.names()[2:] == ["step_00000060", "step_00000080"]
    prune(folder, 1, keep_step=70)
    assert folder.names()[2:] == ["step_00000080"]


def test_nothing_is_touched_where_none_serves(folder: Place) -> None:
    assert keep_what_serves(folder, parts(100), parts(300)) == 0
    assert len(folder.names()) == 5
    assert keep_what_serves(folder / "none", parts(100, **WSD), parts(300, **WSD)) == 0


@pytest.mark.parametrize(("train", "told", "left"), [(WSD, "goes on from step 80: train.steps: 100 -> 300", 2), ({}, "is done again: ", 0)])
def test_the_pipeline_says_so(folder: Place, train: dict[str, Any], told: str, left: int) -> None:
    before = {"key": "old", "reads": parts(100, **train), "sources": {}}
    task = _Task("train", parts(300, **train), {}, before)
    assert _start_folder(Run(Place(folder.path.parent)), task).startswith(told)
    assert len([n for n in folder.names() if n.startswith("step_")]) == left
    assert json.loads((folder / STARTED).read_text())["key"] == task.key and not (folder / MANIFEST).exists()
