"""Packing and training at the same time, with stages that only pretend: order of the manifests, and who ends whom."""

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from conftest import run_data
from zhlm import pipeline
from zhlm.config.load import load_config
from zhlm.config.schema import RunConfig
from zhlm.config.stages import STAGES
from zhlm.display import Display
from zhlm.errors import ClusterError, ConfigError, CorpusError, RunError, TrainError
from zhlm.records import Progress, Report
from zhlm.storage import Run
from zhlm.submit import revision

Job = Callable[[RunConfig, Report], dict[str, Any]]
MOST = {"CPU": 3.0}


class Stages:
    """Stands in for the jobs; says which ran, with which config."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch
        self.ran: list[str] = []
        for name in ("zh.txt", "en.txt"):
            (folder / name).write_text("text\n", encoding="utf-8")
        self.most: dict[str, float] | None = MOST
        cluster = ModuleType("zhlm.cluster")
        vars(cluster).update(connected=nullcontext, check_capacity=lambda config: None, most_resources=lambda: self.most)
        vars(cluster).update(worker_room=lambda config: None)
        monkeypatch.setitem(sys.modules, "zhlm.cluster", cluster)
        for stage in ("pack", "train", "export", "evaluate"):
            self.job(stage, lambda config, report: {})

    def job(self, stage: str, run: Job) -> None:
        def noted(config: RunConfig, report: Report) -> dict[str, Any]:
            self.ran.append(stage)
            return run(config, report)

        module = ModuleType(f"zhlm.{stage}.job")
        vars(module).update(run=noted)
        self._monkeypatch.setitem(sys.modules, f"zhlm.{stage}.job", module)

    def run(self, *stages: str, **train: Any) -> Run:
        config = self.config(**train)
        with Display(io.StringIO()) as display:
            pipeline.run_stages(config, Run.of(config), stages or ("pack", "train", "export", "evaluate"), display)  # type: ignore[arg-type]
        return Run.of(config)

    def config(self, **train: Any) -> RunConfig:
        data = run_data(self.folder, **{"start": "with_packing", **train})
        return RunConfig.model_validate_json(json.dumps(data))


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(tmp_path, monkeypatch)


def soon(event: threading.Event) -> None:
    assert event.wait(10), "the other stage does not run"


def nobody_is_left() -> None:
    for thread in threading.enumerate():
        if thread.name == "zhlm-beside":
            thread.join(1)
            assert not thread.is_alive()


def until_stopped(report: Report) -> None:
    for done in range(100_000):
        report(Progress("pack", done, 100_000, "shards"))
        time.sleep(0.01)


def test_both_run_at_once_and_the_manifest_of_training_comes_last(stages: Stages) -> None:
    packs, trained = threading.Event(), threading.Event()
    seen: dict[str, Any] = {}

    def pack(config: RunConfig, report: Report) -> dict[str, Any]:
        seen["pack_tasks"] = config.resources.pack_tasks
        packs.set()
        soon(trained)
        time.sleep(0.2)
        seen["train_manifest_while_packing"] = (Run.of(config).checkpoints / "manifest.json").exists()
        return {"summary": "packed"}

    def train(config: RunConfig, report: Report) -> dict[str, Any]:
        soon(packs)
        trained.set()
        return {}

    stages.job("pack", pack)
    stages.job("train", train)
    run = stages.run()
    assert seen == {"pack_tasks": 1, "train_manifest_while_packing": False}, "two workers leave one of three CPUs"
    assert sorted(stages.ran[:2]) == ["pack", "train"] and stages.ran[2:] == ["export", "evaluate"]
    assert run.manifest("train")["reads"]["from"] == {"pack": run.manifest("pack")["key"]}
    stages.ran.clear()
    stages.run()
    stages.run(start="after_packing")
    assert stages.ran == [], "the same keys as one after the other"


@pytest.fixture(params=["terminal", "background"])
def started_from(request: pytest.FixtureRequest) -> Iterator[None]:
    """A shell's `&` in a script makes what it starts deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler if request.param == "terminal" else signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_failure_of_packing_ends_training_and_is_what_is_told(stages: Stages, started_from: None) -> None:
    def pack(config: RunConfig, report: Report) -> dict[str, Any]:
        raise CorpusError("corpus: zh.txt line 3 is broken")

    def train(config: RunConfig, report: Report) -> dict[str, Any]:
        time.sleep(60)
        return {}

    stages.job("pack", pack)
    stages.job("train", train)
    started_s = time.monotonic()
    with pytest.raises(CorpusError, match="line 3"):
        stages.run()
    assert time.monotonic() - started_s < 10
    run = Run.of(stages.config())
    assert not any((place / "manifest.json").exists() for place in (run.blocks, run.checkpoints))


@pytest.mark.parametrize("error", [TrainError("train: step 3 has a loss of nan"), KeyboardInterrupt()])
def test_a_failure_of_training_ends_packing_at_its_next_report(stages: Stages, error: BaseException) -> None:
    packs = threading.Event()

    def pack(config: RunConfig, report: Report) -> dict[str, Any]:
        packs.set()
        until_stopped(report)
        return {}

    def train(config: RunConfig, report: Report) -> dict[str, Any]:
        soon(packs)
        raise error

    stages.job("pack", pack)
    stages.job("train", train)
    with pytest.raises(type(error)):
        stages.run()
    nobody_is_left()


def test_ctrl_c_while_only_packing_is_left(stages: Stages) -> None:
    def pack(config: RunConfig, report: Report) -> dict[str, Any]:
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        until_stopped(report)
        return {}

    stages.job("pack", pack)
    with pytest.raises(KeyboardInterrupt):
        stages.run()
    nobody_is_left()


def test_a_second_attempt_goes_on_with_both_and_forgets_the_dead_packer(stages: Stages) -> None:
    def pack(config: RunConfig, report: Report) -> dict[str, Any]:
        blocks = Run.of(config).blocks
        for name in ("plan.json", "packer.json", "ledger.jsonl"):
            (blocks / name).write_text("old")
        raise CorpusError("once")

    def train(config: RunConfig, report: Report) -> dict[str, Any]:
        (Run.of(config).checkpoints / "step_00000001" / "progress.json").write_text("{}")
        time.sleep(60)
        return {}

    stages.job("pack", pack)
    stages.job("train", train)
    with pytest.raises(CorpusError):
        stages.run()
    left: dict[str, list[str]] = {}

    def look(config: RunConfig, report: Report) -> dict[str, Any]:
        left["train"], left["pack"] = Run.of(config).checkpoints.names(), Run.of(config).blocks.names()
        return {}

    stages.job("pack", lambda config, report: {})
    stages.job("train", look)
    stages.run()
    assert "step_00000001" in left["train"] and "ledger.jsonl" in left["pack"]
    assert "packer.json" not in left["pack"] and "plan.json" not in left["pack"]


def test_finished_training_is_not_repeated_when_its_blocks_are_packed_again(stages: Stages) -> None:
    run = stages.run()
    (run.blocks / "manifest.json").delete()
    stages.ran.clear()
    stages.run()
    assert stages.ran == ["pack"]


def test_small_corpora_and_full_clusters_go_one_after_the_other(stages: Stages) -> None:
    order: list[str] = []
    stages.job("pack", lambda config, report: {"n": order.append(f"pack {config.resources.pack_tasks}")})
    stages.job("train", lambda config, report: {"n": order.append("train")})
    stages.run(start="auto")
    assert order == ["pack 2", "train"]


def test_what_nobody_foresaw_is_one_line(stages: Stages) -> None:
    """What comes from a worker has the whole traceback as its message."""

    def fail(config: RunConfig, report: Report) -> dict[str, Any]:
        raise RayTaskError("ray::map", "Traceback:\n  File\nMemoryError: 3 GiB", MemoryError("3 GiB")).as_instanceof_cause()

    stages.job("pack", fail)
    config, terminal = stages.config(start="after_packing"), io.StringIO()
    pipeline._log_path(Run.of(config)).parent.mkdir(parents=True)
    with Display(terminal) as display:
        assert pipeline._run_shown(config, Run.of(config), ("pack",), display) == 1
    assert "\nzhlm: failed: MemoryError: 3 GiB\nzhlm: the whole story is in" in terminal.getvalue()
    assert "Traceback" in pipeline._log_path(Run.of(config)).read_text()


def test_what_cannot_be_is_refused_before_any_work(stages: Stages) -> None:
    with pytest.raises(ConfigError, match=r"set train\.steps instead of train\.epochs"):
        stages.run(steps=None, epochs=1.0)
    stages.most = {"CPU": 2.0}
    with pytest.raises(ClusterError, match="expected 1 more for packing"):
        stages.run()
    assert stages.ran == []


def test_a_stage_alone_refuses_what_was_made_for_something_else(stages: Stages) -> None:
    with pytest.raises(RunError, match="has no finished pack stage"):
        stages.run("train")
    stages.run()
    stages.ran.clear()
    stages.run("train")
    assert stages.ran == []
    data = stages.config().model_dump(mode="json")
    changed = RunConfig.model_validate_json(json.dumps(data | {"pack": data["pack"] | {"block_tokens": 16}}))
    with Display(io.StringIO()) as display:
        with pytest.raises(
            RunError, match=r"train: the pack stage of .* was done for something else: pack\.block_tokens: 32 -> 16; run"
        ) as told:
            pipeline.run_stages(changed, Run.of(changed), ("train",), display)
        assert "\n" not in str(told.value)
        pipeline.run_stages(changed, Run.of(changed), ("pack",), display)
    (stages.folder / "zh.txt").write_text("other text\n", encoding="utf-8")
    named = rf"train: the pack stage .*the files of zh changed \({stages.folder}/zh\.txt changed\); run `python -m ray_jobs\.pack`"
    with pytest.raises(RunError, match=named):
        stages.run("train")
    with pytest.raises(RunError, match=r"export: the train stage of .* train\.learning_rate: 0\.01 -> 0\.5"):
        stages.run("export", learning_rate=0.5)


def test_a_stage_that_is_done_again_says_for_which_files(stages: Stages) -> None:
    stages.run("pack")
    (stages.folder / "zh.txt").rename(stages.folder / "other-name.txt")
    corpus = stages.folder / "zh"
    data = stages.config().model_dump(mode="json")
    data["streams"][0]["paths"] = [str(corpus)]
    config = RunConfig.model_validate_json(json.dumps(data))
    corpus.mkdir()
    for n in range(4):
        (corpus / f"{n}.txt").write_text(f"{n}\n", encoding="utf-8")

    def says() -> str:
        terminal = io.StringIO()
        with Display(terminal) as display:
            pipeline.run_stages(config, Run.of(config), ("pack",), display)
        return " ".join(terminal.getvalue().split())

    assert "the files of zh changed (" in says()
    (corpus / "1.txt").write_text("one\n", encoding="utf-8")
    (corpus / "2.txt").unlink()
    (corpus / "4.txt").write_text("4\n", encoding="utf-8")
    assert f"pack is done again: the files of zh changed ({corpus}/1.txt changed, {corpus}/4.txt is new and 1 more)" in says()
    (corpus / "4.txt").rename(corpus / "5.txt")
    assert "finished earlier" in says()


def test_what_a_stage_was_done_for_is_told_with_both_values(stages: Stages) -> None:
    task = pipeline._Task.of(stages.config(), Run.of(stages.config()), "pack")
    before = {"reads": json.loads(json.dumps(task.key_parts))}
    before["reads"]["from"] = {"vocab": "aaaa"}
    before["reads"]["files"]["zh"] = "from a version that kept no list of files"
    now = pipeline._Task("pack", task.key_parts | {"from": {"vocab": "bbbb"}}, task.sources, None)
    assert pipeline._told(before, now) == "the files of zh changed; the tokenizer of the vocab stage: 'aaaa' -> 'bbbb'"
    before["reads"]["config"]["pack"]["packing"] = "concat"
    before["reads"]["config"]["streams"][0]["paths"] = ["x" * 300, "y"]
    assert pipeline._told(before, now) == (
        "streams.0.paths changed; pack.packing: 'concat' -> 'best_fit'; the files of zh changed and 1 more"
    )


def test_a_base_that_is_replaced_in_its_place_is_trained_again(stages: Stages) -> None:
    """And packed again only where its tokenizer is another one."""
    base = stages.folder / "base"
    base.mkdir()
    (base / "config.json").write_text("{}", encoding="utf-8")
    for name in ("model.safetensors", "tokenizer.json"):
        (base / name).write_bytes(name.encode())
    stages.run()
    (base / "README.md").write_text("a card\n", encoding="utf-8")
    stages.ran.clear()
    stages.run()
    assert stages.ran == []
    (base / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(
        RunError, match=rf"export: the train stage .*the files of base\.model changed \({base}/model\.safetensors changed\);"
    ):
        stages.run("export")
    stages.run()
    assert stages.ran == ["train", "export", "evaluate"]
    (base / "tokenizer.json").write_bytes(b"another one")
    stages.ran.clear()
    stages.run()
    assert sorted(stages.ran[:2]) == ["pack", "train"]


def test_with_a_vocab_stage_the_base_is_its_input_alone(stages: Stages) -> None:
    base = stages.folder / "base"
    base.mkdir()
    (base / "tokenizer.json").write_bytes(b"{}")
    config = RunConfig.model_validate_json(json.dumps(run_data(stages.folder) | {"vocab": {}}))
    assert [stage for stage in STAGES if pipeline._base_files(config, stage)] == ["vocab"]
    own = config.model_copy(update={"base": config.base.model_copy(update={"model": "org/name-of-the-hub"})})
    assert [stage for stage in STAGES if pipeline._base_files(own, stage)] == []


def test_packing_begins_with_the_leftovers_of_killed_packers(stages: Stages) -> None:
    store = Run.of(stages.config()).store
    for name in (".aa1.train.01234567", ".aa2.train.01234567"):
        (store / "aa" / name).write_text("x")
    old = (store / "aa" / ".aa1.train.01234567").path
    os.utime(old, (0, 0))
    stages.run()
    assert (store / "aa").names() == [".aa2.train.01234567"]


def test_all_stages_load_one_commit_of_a_hub_model(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def note(config: RunConfig, report: Report) -> dict[str, Any]:
        seen.append(config.base.revision)
        return {}

    for stage in ("pack", "train", "export", "evaluate"):
        stages.job(stage, note)
    commits = iter(["a" * 40, "b" * 40])
    monkeypatch.setattr(revision, "commit_of", lambda model, branch: next(commits))
    named = stages.config(start="after_packing").base.model_copy(update={"model": "org/model"})
    config = stages.config(start="after_packing").model_copy(update={"base": named})
    run = Run.of(config)
    for wanted in (("pack",), ("pack", "train", "export", "evaluate"), ("pack",)):
        with Display(io.StringIO()) as display:
            pipeline.run_stages(config, run, wanted, display)  # type: ignore[arg-type]
        assert load_config(run.config.on_disk()).base.revision == "a" * 40, "what reads the run's folder later loads it too"
    assert seen == ["a" * 40] * 4 and stages.ran == ["pack", "train", "export", "evaluate"]
    assert run.manifest("pack")["reads"]["config"]["base"]["revision"] is None, "a finished run stays finished"
