"""A hub model named by a branch is the same commit through the whole run, whatever the branch does meanwhile."""

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from conftest import run_data
from zhlm.config.schema import RunConfig
from zhlm.storage import Run
from zhlm.submit import revision
from zhlm.submit.revision import commit_of, recorded, settled

OLD, NEW = "a" * 40, "b" * 40


class Hub:
    """A branch that moves each time that somebody looks."""

    def __init__(self, *commits: str | None) -> None:
        self.commits, self.asked = list(commits), list[tuple[str, str | None]]()

    def __call__(self, model: str, branch: str | None) -> str | None:
        self.asked.append((model, branch))
        return self.commits.pop(0)


def config_of(folder: Path, model: str = "org/model", branch: str | None = None) -> RunConfig:
    data = run_data(folder) | {"base": {"model": model, "revision": branch}}
    return RunConfig.model_validate_json(json.dumps(data))


def test_the_first_stage_settles_the_commit_of_all(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    run, hub = Run.of(config), Hub(OLD, NEW)
    assert recorded(config, run) is config
    assert [settled(config, run, hub).base.revision for _ in range(3)] == [OLD] * 3 and hub.asked == [("org/model", None)]
    assert recorded(config, run).base.revision == OLD
    assert json.loads((run.folder / "base.json").read_text()) == {"model": "org/model", "revision": None, "commit": OLD}


def test_another_branch_is_looked_up_anew(tmp_path: Path) -> None:
    run, hub = Run.of(config_of(tmp_path)), Hub(OLD, NEW)
    settled(config_of(tmp_path), run, hub)
    other = config_of(tmp_path, branch="next")
    assert recorded(other, run) is other
    assert settled(other, run, hub).base.revision == NEW and hub.asked == [("org/model", None), ("org/model", "next")]


@pytest.mark.parametrize(("model", "branch"), [("org/model", OLD), ("{folder}", None), ("s3://bucket/model", None)])
def test_what_cannot_move_is_left_alone(tmp_path: Path, model: str, branch: str | None) -> None:
    config = config_of(tmp_path, model.format(folder=tmp_path), branch)
    assert settled(config, Run.of(config), Hub()) is config and not (Run.of(config).folder / "base.json").exists()


def test_a_model_that_nobody_finds_is_looked_for_again(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    run, hub = Run.of(config), Hub(None, OLD)
    assert settled(config, run, hub) is config and not (run.folder / "base.json").exists()
    assert settled(config, run, hub).base.revision == OLD


def test_a_machine_without_network_uses_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert commit_of("org/model", None) is None
    for branch, commit in (("main", OLD), ("next", NEW)):
        folder = tmp_path / "models--org--model"
        for path, text in ((folder / "refs" / branch, commit), (folder / "snapshots" / commit / "config.json", "{}")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    assert [commit_of("org/model", branch) for branch in (None, "main", "next", "none")] == [OLD, OLD, NEW, None]


def test_without_a_copy_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Info:
        sha = NEW

    def answer(api: HfApi, model: str, *, revision: str | None, timeout: float) -> Info:
        if model != "org/model":
            raise ConnectionError("no network")
        return Info()

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", answer)
    assert commit_of("org/model", "main") == NEW and commit_of("org/other", None) is None
    assert commit_of("no/such/name", None) is None


def test_the_default_is_to_look_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "commit_of", Hub(OLD))
    config = config_of(tmp_path)
    assert settled(config, Run.of(config)).base.revision == OLD
