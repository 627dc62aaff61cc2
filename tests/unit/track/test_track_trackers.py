"""What W&B, MLflow and Ray's metrics are told. The packages of the first two are played by modules with the parts of their interface that
are used, W&B's rule that steps never go back included."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from conftest import run_data
from zhlm.config.schema import RunConfig
from zhlm.errors import ConfigError
from zhlm.storage import Run
from zhlm.submit.preflight import check_trackers
from zhlm.track import gauges, trackers
from zhlm.track.trackers import Trackers, trackers_of


def row(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "loss_nats": loss, "unix_s": 100.0 + step}


def scores(step: int, bits: float) -> dict[str, Any]:
    return {"step": step, "validation": {"zh": {"bits_per_byte": bits}}, "unix_s": 100.0 + step}


class Told:
    """A tracker that keeps what it is told, and fails at a step."""

    def __init__(self, name: str, has: Mapping[str, int] | None = None, fails_at: int = -1) -> None:
        self.name, self.has, self.fails_at = name, dict(has or {}), fails_at
        self.values: list[tuple[int, str, float]] = []
        self.finished: bool | None = None

    def last(self, value: str) -> int:
        return self.has.get(value, -1)

    def log(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        if step == self.fails_at:
            raise ConnectionError("no route\nto the server")
        self.values += [(step, name, value) for name, value in values.items()]

    def close(self, *, finished: bool) -> None:
        self.finished = finished


def test_each_number_is_told_once_over_restarts_of_workers_and_of_the_driver() -> None:
    fresh, knows = Told("fresh"), Told("knows", {"loss_nats": 2})
    with Trackers([fresh, knows]) as told:
        told.tell([row(1, 5.0), row(2, 4.0), scores(2, 2.5)])  # what metrics.jsonl held when the driver started
        told.tell([row(3, 3.0), row(4, 2.0)])
        told.tell([row(3, 3.1), row(4, 2.1), scores(4, 2.2)])  # again, after a worker died
        told.tell([row(1, 5.0), row(2, 4.0), scores(2, 2.5), row(3, 3.1), row(4, 2.1), scores(4, 2.2), row(5, 1.0)])  # the whole file
    losses = [(step, value) for step, name, value in fresh.values if name == "loss_nats"]
    assert losses == [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0), (5, 1.0)]
    assert [(step, value) for step, name, value in fresh.values if name == "bits_per_byte/zh"] == [(2, 2.5), (4, 2.2)]
    assert [step for step, name, _ in knows.values if name == "loss_nats"] == [3, 4, 5]
    assert fresh.finished is knows.finished is True and told.problems == {}


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    breaks, other = Told("breaks", fails_at=2), Told("other")
    with pytest.raises(ZeroDivisionError), Trackers([breaks, other]) as told:
        told.tell([row(1, 5.0), row(2, 4.0), row(3, 3.0)])
        raise ZeroDivisionError
    assert [step for step, *_ in breaks.values] == [1] and breaks.finished is None
    assert [step for step, *_ in other.values] == [1, 2, 3] and other.finished is False, "the training did not finish"
    assert told.problems == {"breaks": "no route"}
    assert [r.getMessage() for r in caplog.records] == ["train: breaks failed and is left out from now on"]


class FakeWandB(ModuleType):
    """Keeps runs by id; a step is closed when a later one comes, and what comes for a closed one is lost."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, SimpleNamespace] = {}
        self.asked: list[dict[str, Any]] = []
        self.has_key = True

    def login(self, prompt: bool) -> bool:
        assert not prompt, "nobody would see the question"
        return self.has_key

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802
        return settings

    def init(self, **asked: Any) -> Any:
        self.asked.append(asked)
        run = self.runs.setdefault(asked["id"], SimpleNamespace(step=0, history={}, code=None))

        def log(values: dict[str, float], step: int) -> None:
            assert step >= run.step, "W&B ignores earlier steps, with a warning for each"
            run.step = step
            run.history.setdefault(step, {}).update(values)

        def finish(exit_code: int) -> None:
            run.step, run.code = run.step + 1, exit_code

        run.log, run.finish = log, finish
        return run


class FakeMLflow(ModuleType):
    """An MLflow server of one experiment, with as much of its client as is used."""

    class MlflowException(Exception):  # noqa: N818
        error_code = "RESOURCE_DOES_NOT_EXIST"

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.entities = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step),
            Param=lambda key, value: (key, value),
        )
        self.experiments: list[str] = []
        self.runs: dict[str, SimpleNamespace] = {}
        self.MlflowClient = lambda: self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments.append(name)
        return name

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = SimpleNamespace(name=run_name, points=[], params=[], status="RUNNING")
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id: str, status: str) -> None:
        if run_id not in self.runs:
            raise self.MlflowException
        self.runs[run_id].status = status

    set_terminated = update_run

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.runs[run_id].points += metrics
        self.runs[run_id].params += params

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return [p for p in self.runs[run_id].points if p.key == key]


def config_of(folder: Path, *names: str) -> RunConfig:
    return RunConfig.model_validate_json(json.dumps(run_data(folder, trackers=names)))


@pytest.fixture
def no_gauges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's metrics need a running Ray."""
    monkeypatch.setattr(trackers, "Prometheus", lambda name: Told("prometheus"))


@pytest.mark.usefixtures("no_gauges")
def test_one_training_is_one_run_of_each_tracker_however_often_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb, mlflow = FakeWandB(), FakeMLflow()
    for module in (wandb, mlflow):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    config = config_of(tmp_path, "wandb", "mlflow")
    run = Run.of(config)
    with pytest.raises(KeyboardInterrupt), Trackers(trackers_of(config, run)) as told:
        told.tell([row(1, 5.0), scores(1, 2.5), row(2, 4.0)])
        raise KeyboardInterrupt
    assert [r.code for r in wandb.runs.values()] == [1] and [r.status for r in mlflow.runs.values()] == ["FAILED"]
    with Trackers(trackers_of(config, run)) as told:
        told.tell([row(1, 5.0), scores(1, 2.5), row(2, 4.0), row(3, 3.0), scores(2, 2.2)])  # the last one comes late
    (there,), (here,) = wandb.runs.values(), mlflow.runs.values()
    expected = {1: {"loss_nats": 5.0, "bits_per_byte/zh": 2.5}, 2: {"loss_nats": 4.0}, 3: {"loss_nats": 3.0}}
    assert there.history == expected and there.code == 0
    assert [(p.step, p.key, p.timestamp) for p in here.points] == [
        (1, "loss_nats", 101000), (1, "bits_per_byte/zh", 101000), (2, "loss_nats", 102000), (3, "loss_nats", 103000),
        (2, "bits_per_byte/zh", 102000),
    ]  # fmt: skip
    assert here.status == "FINISHED" and here.name == "tiny" and mlflow.experiments == ["tiny"] and ("train.steps", "8") in here.params
    asked = wandb.asked[0]
    assert (asked["project"], asked["name"], asked["resume"]) == ("tiny", "tiny", "allow") and asked["config"]["train"]["steps"] == 8

    run.checkpoints.delete()  # training begins anew
    trackers_of(config, run)
    assert len(wandb.runs) == len(mlflow.runs) == 2
    mlflow.runs.clear()  # MLFLOW_TRACKING_URI names another server now
    trackers_of(config, run)
    assert len(wandb.runs) == 2 and len(mlflow.runs) == 1


@pytest.mark.usefixtures("no_gauges")
def test_a_tracker_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandB()
    wandb.has_key = False
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = config_of(tmp_path, "wandb")
    with pytest.raises(
        ConfigError, match=r"^train: the tracker wandb does not start \(no key is known; run `wandb login`, .*WANDB_MODE"
    ) as e:
        trackers_of(config, Run.of(config))
    assert "\n" not in str(e.value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert [t.name for t in trackers_of(config, Run.of(config))] == ["prometheus", "wandb"]


def test_a_package_that_is_missing_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(config_of(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^train: trackers names mlflow, which is not installed here; pip install mlflow, or remove"):
        check_trackers(config_of(tmp_path, "mlflow"))


def test_gauges_have_the_runs_name_and_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[tuple[str, ...], float] = {}

    class FakeGauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description
            self.name, self.keys = name, tag_keys

        def set_default_tags(self, tags: dict[str, str]) -> None:
            self.tags = tags

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert {**self.tags, **tags}.keys() == {*self.keys}, "Ray refuses tags that were not announced, or lack"
            seen[self.name, *self.tags.values(), *tags.values()] = value

    monkeypatch.setattr(gauges, "Gauge", FakeGauge)
    with Trackers([gauges.Prometheus("tiny")]) as told:
        told.tell([row(1, 5.0), row(2, 4.0) | {"learning_rate": 0.1, "tokens_per_s": 9.0}, scores(2, 2.5)])
    assert seen == {
        ("zhlm_train_step", "tiny"): 2.0,
        ("zhlm_train_loss_nats", "tiny"): 4.0,
        ("zhlm_train_tokens_per_s", "tiny"): 9.0,
        ("zhlm_train_bits_per_byte", "tiny", "zh"): 2.5,
    }
    assert told.problems == {}
