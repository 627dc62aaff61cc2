"""Rows of metrics.jsonl on their way out, from the driver: gauges for Prometheus always, W&B and MLflow where `train.trackers` names them.

The driver has the user's environment, and a slow server there cannot hold up a step. Each number is told once, by name and step: what a
restart trains again keeps the value that was told first. A tracker that fails while a run goes on is left out from then on.
"""

import importlib
import json
import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from zhlm.config.schema import RunConfig
from zhlm.errors import ConfigError
from zhlm.storage import TRACKER_IDS, Run
from zhlm.track.gauges import Prometheus
from zhlm.track.tensorboard import scalars

LEAVE_S = 60.0
"""How long the end of training waits for slow servers."""


class Tracker(Protocol):
    name: str

    def last(self, value: str) -> int:
        """The last step of which it has this value already; -1 for none."""

    def log(self, step: int, values: Mapping[str, float], time_s: float) -> None: ...

    def close(self, *, finished: bool) -> None: ...


class Trackers:
    """All trackers of a run, told in a thread of its own. A context manager: they learn whether training finished."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)
        self._told: dict[tuple[str, str], int] = {}
        self._rows: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self.problems: dict[str, str] = {}
        """Why a tracker was left out, by its name."""
        self._finished = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="zhlm-trackers")

    def tell(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows with ascending steps; those that are told already may be among them."""
        for row in rows:
            self._rows.put(row)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._finished = kind is None
        self._rows.put(None)
        self._thread.join(LEAVE_S)

    def _work(self) -> None:
        while (row := self._rows.get()) is not None:
            self._each(partial(self._log, row))
        self._each(lambda tracker: tracker.close(finished=self._finished))

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for tracker in [t for t in self._trackers if t.name not in self.problems]:
            try:
                action(tracker)
            except Exception as error:
                self.problems[tracker.name] = _first_line(error)
                logging.getLogger(__name__).warning("train: %s failed and is left out from now on", tracker.name, exc_info=True)

    def _log(self, row: Mapping[str, Any], tracker: Tracker) -> None:
        step, new = row["step"], {}
        for value, number in scalars(row).items():
            key = tracker.name, value
            if key not in self._told:
                self._told[key] = tracker.last(value)
            if step > self._told[key]:
                new[value] = number
        if new:
            tracker.log(step, new, row.get("unix_s", 0.0))
            self._told |= {(tracker.name, value): step for value in new}


def trackers_of(config: RunConfig, run: Run) -> list[Tracker]:
    """Raises: ConfigError when one that is asked for cannot start."""
    started: list[Tracker] = [Prometheus(config.name)]
    ids = run.checkpoints / TRACKER_IDS
    for name in config.train.trackers:
        known = json.loads(ids.read_text()) if ids.exists() else {}
        try:
            module = importlib.import_module(name)
            tracker = WandB(module, config, run, known.get(name)) if name == "wandb" else MLflow(module, config, known.get(name))
        except Exception as error:
            raise ConfigError(
                f"train: the tracker {name} does not start ({_first_line(error)}); correct its settings, or remove it from train.trackers"
            ) from error
        ids.write_text(json.dumps(known | {name: tracker.id}))
        started.append(tracker)
    return started


class WandB:
    """A W&B run in the project of the run's name, or of WANDB_PROJECT."""

    name = "wandb"

    def __init__(self, wandb: Any, config: RunConfig, run: Run, known: str | None) -> None:
        mode = os.environ.get("WANDB_MODE", "online")
        # It would ask on a terminal that shows nothing of it.
        if mode == "online" and not wandb.login(prompt=False):
            raise ConfigError("no key is known; run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline")
        run.here.mkdir(parents=True, exist_ok=True)
        self.id = known or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", config.name),
            name=config.name,
            id=self.id,
            resume="allow",
            config=config.model_dump(mode="json"),
            dir=str(run.here),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Steps before are closed there; offline, nothing is known of them.
        self._open = int(self._run.step)

    def last(self, value: str) -> int:
        return self._open - 1

    def log(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        if step >= self._open:
            self._open = step
            self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """An MLflow run in the experiment of the run's name, or of MLFLOW_EXPERIMENT_NAME."""

    name = "mlflow"

    def __init__(self, mlflow: Any, config: RunConfig, known: str | None) -> None:
        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        self.id = known if known and self._goes_on(mlflow, known) else self._create(config)

    def _goes_on(self, mlflow: Any, run_id: str) -> bool:
        """False where this server does not know the run: MLFLOW_TRACKING_URI names another one now."""
        try:
            self._client.update_run(run_id, status="RUNNING")
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _create(self, config: RunConfig) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", config.name)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id = str(self._client.create_run(experiment_id, run_name=config.name).info.run_id)
        settings = config.train.model_dump(mode="json")
        self._client.log_batch(run_id, params=[self._entities.Param(f"train.{k}", str(v)) for k, v in settings.items()])
        return run_id

    def last(self, value: str) -> int:
        return max((point.step for point in self._client.get_metric_history(self.id, value)), default=-1)

    def log(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        metrics = [self._entities.Metric(name, number, int(time_s * 1000), step) for name, number in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self.id, "FINISHED" if finished else "FAILED")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
