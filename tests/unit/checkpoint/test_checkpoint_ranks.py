"""Two processes under DeepSpeed: a state goes through every ZeRO stage and many files, and no bit of it changes."""

from itertools import chain
from pathlib import Path

import torch
from ranks import Net, both, on_ranks

from zhlm.checkpoint.sharded import MOMENTS
from zhlm.checkpoint.state import TrainState, newest, save
from zhlm.storage import Place


def test_a_state_goes_from_stage_to_stage_and_a_failure_reaches_all(tmp_path: Path) -> None:
    shapes = {name: p.shape for name, p in Net().named_parameters()}
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    moments = {f"{name}/{key}": torch.rand(shape) for name, shape in shapes.items() for key in MOMENTS}
    save(Place(tmp_path / "first"), TrainState(step=4), values, moments)
    stages = [3, 0, 2, 1]
    told = on_ranks(2, tmp_path, both, str(tmp_path / "first"), str(tmp_path), stages)

    for stage in stages:
        found, passed_over = newest(Place(tmp_path / f"zero{stage}"))
        assert found is not None and passed_over == [] and found.state.step == 5
        for saved, kept in ((values, found.trainable()), (moments, found.optimizer())):
            assert set(kept) == set(saved) and all(torch.equal(kept[name], saved[name]) for name in saved), f"ZeRO {stage}"
        assert sorted(found.files)[0] == "optimizer-00001-of-00002.safetensors" and len(found.files) == 4
    for number in range(len(stages)):
        parts = [written[number] for written, _ in told]
        assert all(parts) and [*chain(*parts)] == sorted(shapes), "each writes a range of names"

    assert [error for _, error in told] == ["checkpoint: no room on the last rank"] * 2
    assert Place(tmp_path / "failing").names() == ["step_00000001"]
