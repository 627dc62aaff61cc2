"""A checkpoint is whole or it does not count."""

import json
from pathlib import Path

import pytest
import torch

from zhlm.checkpoint.state import FORMAT, OPTIMIZER, PROGRESS, TRAINABLE, Facts, TrainState, newest, prune, save
from zhlm.errors import CheckpointError, RunError
from zhlm.storage import Place


def tensors(step: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(step)
    trainable = {"lora_A": torch.randn(4, 3), "embed": torch.randn(7, 2), "scalar": torch.tensor(float(step))}
    moments = {f"{n}/{key}": torch.rand_like(t) for n, t in trainable.items() for key in ("exp_avg", "exp_avg_sq")}
    return trainable, moments


def save_step(place: Place, step: int) -> Path:
    return save(place, TrainState(step, 6 * step, 100 * step, 0.5 * step), *tensors(step)).path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folder = Place(tmp_path / "checkpoints")
    for step in (4, 100_000_000, 12):
        save_step(folder, step)
    return folder


def test_the_newest_comes_back_as_saved(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for step in (4, 12, 8):
        save_step(place, step)
    found, passed_over = newest(place)
    assert found is not None and passed_over == []
    assert found.state == TrainState(step=12, consumed_blocks=72, tokens=1200, seconds=6.0)
    for kept, saved in zip((found.trainable(), found.optimizer()), tensors(12), strict=True):
        assert set(kept) == set(saved)
        assert all(torch.equal(kept[n], saved[n]) and kept[n].dtype == torch.float32 for n in saved)


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert newest(Place(tmp_path / "nothing")) == (None, [])
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "started.json").write_text("{}")
    assert newest(Place(tmp_path)) == (None, [])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("file", [TRAINABLE, OPTIMIZER])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped bit", "torn", "missing"])
def test_a_damaged_tensor_file_is_passed_over_and_named(tmp_path: Path, file: str, damage: object) -> None:
    save_step(Place(tmp_path), 4)
    damage(save_step(Place(tmp_path), 8) / file)  # type: ignore[operator]
    found, passed_over = newest(Place(tmp_path))
    assert found is not None and found.state.step == 4
    assert passed_over == [f"step_00000008 passed over: {file} is missing or damaged"]


@pytest.mark.parametrize("text", [None, "", '{"state": {"st', "[]", '{"state": {}}', '{"sha256": {}}', '{"state": {"x": 1}, "sha256": {}}'])
def test_a_missing_or_torn_progress_file_is_passed_over(tmp_path: Path, text: str | None) -> None:
    save_step(Place(tmp_path), 4)
    progress = save_step(Place(tmp_path), 8) / PROGRESS
    progress.unlink() if text is None else progress.write_text(text, encoding="utf-8")
    found, passed_over = newest(Place(tmp_path))
    assert found is not None and found.state.step == 4
    assert len(passed_over) == 1 and PROGRESS in passed_over[0]


def test_all_damaged_means_none_and_each_is_told(tmp_path: Path) -> None:
    for step in (4, 8):
        cut(save_step(Place(tmp_path), step) / TRAINABLE)
    found, passed_over = newest(Place(tmp_path))
    assert found is None and [p.split()[0] for p in passed_over] == ["step_00000008", "step_00000004"]


def test_an_unfinished_save_is_not_seen(tmp_path: Path) -> None:
    save_step(Place(tmp_path), 4)
    (tmp_path / ".step_00000008.0123abcd").mkdir()
    found, passed_over = newest(Place(tmp_path))
    assert found is not None and found.state.step == 4 and passed_over == []


def test_empty_tensors_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    """ZeRO-3 shows an ungathered parameter as an empty tensor; saving that would lose the training."""
    trainable, moments = tensors(1)
    with pytest.raises(CheckpointError, match=r"3 tensors, empty ones: \['embed'\]; a sharded parameter was not gathered"):
        save(Place(tmp_path), TrainState(step=1), trainable | {"embed": torch.empty(0)}, moments)
    with pytest.raises(CheckpointError, match="would hold 0 tensors"):
        save(Place(tmp_path), TrainState(step=1), {}, moments)
    assert list(tmp_path.iterdir()) == []


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_step(Place(tmp_path), 4)
    trainable, moments = tensors(9)
    save(Place(tmp_path), TrainState(step=4, tokens=1), trainable, moments)
    found, _ = newest(Place(tmp_path))
    assert found is not None and found.state.tokens == 1 and torch.equal(found.trainable()["embed"], trainable["embed"])
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000004"]


def test_half_precision_and_views_are_saved_whole_in_float32(tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    save(Place(tmp_path), TrainState(step=1), {"turned": base.T, "row": base[1]}, {"m": torch.ones(3)})
    found, _ = newest(Place(tmp_path))
    assert found is not None and torch.equal(found.trainable()["turned"], base.T.float())
    assert found.trainable()["row"].tolist() == [4.0, 5.0, 6.0, 7.0]


def test_progress_says_where_the_run_is(tmp_path: Path) -> None:
    progress = json.loads((save_step(Place(tmp_path), 4) / PROGRESS).read_text(encoding="utf-8"))
    assert progress["state"] == {"step": 4, "consumed_blocks": 24, "tokens": 400, "seconds": 2.0}
    assert set(progress["sha256"]) == {TRAINABLE, OPTIMIZER}


def test_a_checkpoint_of_before_formats_had_numbers_is_read(tmp_path: Path) -> None:
    progress = save_step(Place(tmp_path), 4) / PROGRESS
    old = {name: json.loads(progress.read_text(encoding="utf-8"))[name] for name in ("state", "sha256")}
    progress.write_text(json.dumps(old), encoding="utf-8")
    found, passed_over = newest(Place(tmp_path))
    assert found is not None and found.state.step == 4 and passed_over == [] and found.facts == Facts()
    found.check_fits({"base": "anything"})
    old["sha256"].popitem()
    progress.write_text(json.dumps(old), encoding="utf-8")
    assert newest(Place(tmp_path)) == (None, ["step_00000004 passed over: progress.json is damaged"])


def test_a_newer_format_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    save_step(Place(tmp_path), 4)
    progress = save_step(Place(tmp_path), 8) / PROGRESS
    newer = json.loads(progress.read_text(encoding="utf-8")) | {"format": FORMAT + 1, "sha256": {"trained.bin": "?"}, "state": {"at": 8}}
    progress.write_text(json.dumps(newer), encoding="utf-8")
    with pytest.raises(
        RunError, match=rf"step_00000008 has format {FORMAT + 1}, this version of zhlm reads 1 to {FORMAT}; install"
    ) as caught:
        newest(Place(tmp_path))
    assert "\n" not in str(caught.value)


MADE_FOR = {"base": "qwen (0a1b)", "tokenizer": "77aa", "block_tokens": 2048, "objective": "causal"}


@pytest.mark.parametrize("changed", [{"base": "llama (22cc)"}, {"tokenizer": "88bb"}, {"block_tokens": 4096}, {"objective": "masked"}])
def test_what_it_was_made_for_must_be_the_same(tmp_path: Path, changed: dict[str, object]) -> None:
    save(Place(tmp_path), TrainState(step=4), *tensors(4), Facts(made_for=MADE_FOR))
    found, _ = newest(Place(tmp_path))
    assert found is not None
    found.check_fits(MADE_FOR)
    ((name, value),) = changed.items()
    with pytest.raises(RunError) as caught:
        found.check_fits(MADE_FOR | changed)
    assert f"step_00000004 was made for something else ({name}: {MADE_FOR[name]!r} -> {value!r}); restore the setting" in str(caught.value)


@pytest.mark.parametrize("base", ["org/model", "org/model@main"])
def test_one_from_before_the_commit_of_a_hub_model_was_noted_goes_on(tmp_path: Path, base: str) -> None:
    save(Place(tmp_path), TrainState(step=4), *tensors(4), Facts(made_for=MADE_FOR | {"base": base}))
    found, _ = newest(Place(tmp_path))
    assert found is not None
    now = MADE_FOR | {"base": "org/model", "revision": "0a" * 20}
    found.check_fits(now)
    with pytest.raises(RunError, match="base: 'org/model' -> 'org/other'"):
        found.check_fits(now | {"base": "org/other"})
    save(Place(tmp_path), TrainState(step=5), *tensors(5), Facts(made_for=now))
    noted, _ = newest(Place(tmp_path))
    assert noted is not None
    with pytest.raises(RunError, match="revision: "):
        noted.check_fits(now | {"revision": "1b" * 20})


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for step in (2, 10, 4, 8):
        save_step(place, step)
    (tmp_path / "manifest.json").write_text("{}")
    prune(place, 2)
    assert place.names() == ["manifest.json", "step_00000008", "step_00000010"]
    prune(place, 5)
    assert len(place.names()) == 3


def test_a_number_that_outgrows_its_digits_is_still_the_newest(place: Place) -> None:
    found, _ = newest(place)
    assert found is not None and found.state.step == 100_000_000
    prune(place, 1)
    assert place.names() == ["step_100000000"]


def test_prune_keeps_the_best_by_the_mean_of_the_streams(tmp_path: Path) -> None:
    place = Place(tmp_path)
    scores = {2: (2.0, 3.0), 4: (1.0, 9.0), 6: (2.1, 2.1), 8: (2.1, 2.1), 10: (5.0, 5.0)}
    for step, (zh, yue) in scores.items():
        validation = {"zh": {"bits_per_byte": zh}, "yue": {"bits_per_byte": yue}}
        save(place, TrainState(step=step), *tensors(step), Facts(validation))
    save(place, TrainState(step=12), *tensors(12), Facts({"zh": {"bits_per_byte": float("nan")}, "yue": {"bits_per_byte": 0.1}}))
    (tmp_path / "step_00000002" / PROGRESS).write_text("[]", encoding="utf-8")
    prune(place, 1, keep_best=1, streams=["zh", "yue"])
    assert place.names() == ["step_00000008", "step_00000012"], "of equal ones the later"
    save(place, TrainState(step=14), *tensors(14), Facts({"zh": {"bits_per_byte": 1.0}, "yue": {"bits_per_byte": 1.0}}))
    prune(place, 1, keep_best=2, streams=["zh", "yue"])
    assert place.names() == ["step_00000008", "step_00000014"]
