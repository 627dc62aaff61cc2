"""Start the workers, watch them, and come back with a finished training or a named error."""

import importlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from zhlm.blocks.mix import block_weights, check_weights, steps_of
from zhlm.checkpoint.made_for import made_for
from zhlm.checkpoint.state import newest
from zhlm.config.schema import ResourcesConfig, RunConfig
from zhlm.errors import DeadlineError, TrainError
from zhlm.records import Progress, Report
from zhlm.storage import MANIFEST, Run
from zhlm.track.trackers import Trackers, trackers_of
from zhlm.train.board import Board
from zhlm.train.elastic import ElasticTrainer, not_started
from zhlm.train.metrics import read_rows

POLL_S = 0.5
START_S = 20.0
"""How long places for workers may take where there was room a moment ago; a node died in between, or another job was faster."""
ANSWER_TIMEOUT_S = 60


def run(config: RunConfig, report: Report) -> dict[str, Any]:
    """Train to the last step, from the newest checkpoint where there is one.

    Raises: TrainError when workers kept failing or the loss is not finite; DeadlineError when they did not start; UserError for what a
    worker found wrong with the input.
    """
    where = Run.of(config)
    steps = _steps(config, where)
    found, same = newest(where.checkpoints)[0], made_for(config, where)
    if found is not None:
        found.check_fits(same)
    else:
        (where.folder / "trace").delete()  # of blocks whose training is forgotten
    # On the driver's machine: a spot node that is taken away must not take the news along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    most = config.resources.max_failures
    settings = {
        "config": _with_absolute_base(config).model_dump_json(),
        "folder": str(where.folder),
        "steps": steps,
        "made_for": same,
        "board": board,
    }
    trainer = ElasticTrainer(
        _work,
        board=board,
        start_timeout_s=config.resources.start_timeout_s,
        train_loop_config=settings,
        scaling_config=scaling_config(config.resources),
        torch_config=TorchConfig(backend="nccl" if config.resources.gpus_per_worker else "gloo", timeout_s=600),
        run_config=RayRunConfig(
            # A name of its own: Ray would silently resume the state of an earlier attempt, whose place our checkpoints take.
            name=datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
            storage_path=str(where.folder / "ray"),
            # The second limit counts starts that failed; without it Ray would try for ever.
            failure_config=FailureConfig(max_failures=most, controller_failure_limit=most),
        ),
    )
    # Per start, so that all of them together keep to the deadline. Before each start, room is waited for.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(min(START_S, config.resources.start_timeout_s / (most + 1)))
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # it would wait for the node's end; zhlm/train/elastic.py watches too
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # by default 2 s, for which the end and each checkpoint wait
    with Trackers(trackers_of(config, where)) as trackers:
        trackers.tell(read_rows(where.metrics, found.state.step if found else 0))
        with _watching(board, steps, config, report, trackers), _interruptible():
            try:
                trainer.fit()
            except TrainingFailedError as error:
                *_, problem, _ = ray.get(board.take.remote(), timeout=ANSWER_TIMEOUT_S)
                raise (problem or _named(error, config.resources)) from error
        _, starts, problem, _ = ray.get(board.take.remote(), timeout=ANSWER_TIMEOUT_S)
        if problem is not None:
            raise problem
        trackers.tell(read_rows(where.metrics))
    (where.folder / "ray").delete()
    return _facts(where, steps, len(starts) - 1)


def _work(settings: dict[str, Any]) -> None:
    """What a worker runs, loaded there: the driver needs neither DeepSpeed nor PEFT, which take seconds, and workers would start later."""
    importlib.import_module("zhlm.train.loop").train_worker(settings)


def _steps(config: RunConfig, where: Run) -> int:
    """Optimizer steps. Only epochs need the totals of all blocks, so that training can begin before they are known.

    Raises: RunError when they are needed and packing is not finished; CorpusError or ConfigError for streams that do not suffice.
    """
    if config.train.steps is not None and not (where.blocks / MANIFEST).exists():
        check_weights(config, config.train.steps, {})
        return config.train.steps
    packed = {name: facts["train"] for name, facts in where.manifest("pack")["facts"]["streams"].items()}
    blocks, shares = {name: facts["blocks"] for name, facts in packed.items()}, None
    if config.pack.packing == "none" and all(blocks.values()):
        weights = {s.name: s.weight for s in config.streams}
        shares = block_weights(weights, {name: facts["tokens"] / facts["blocks"] for name, facts in packed.items()})
    steps = steps_of(config, blocks, shares)
    check_weights(config, steps, blocks, shares)
    return steps


def _with_absolute_base(config: RunConfig) -> RunConfig:
    """Workers have another working directory, where a relative model folder would look like a hub name."""
    folder = Path(config.base.model).expanduser()
    return (
        config.model_copy(update={"base": config.base.model_copy(update={"model": str(folder.absolute())})}) if folder.is_dir() else config
    )


def scaling_config(resources: ResourcesConfig) -> ScalingConfig:
    """What Ray Train asks the cluster for."""
    each = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        each["GPU"] = resources.gpus_per_worker
    return ScalingConfig(num_workers=resources.workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=each)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ray Train answers Ctrl-C by ending its workers and then the program, without a word, and goes on doing so after its work."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@contextmanager
def _watching(board: Any, steps: int, config: RunConfig, report: Report, trackers: Trackers) -> Iterator[None]:
    """Turn the board's rows into progress, and pass them on, while the main thread waits for the trainer."""
    stop = threading.Event()

    def watch() -> None:
        shown: dict[str, float | int | str] = {"workers": f"0/{config.resources.max_workers}", "waiting for": "workers"}
        report(Progress("train", 0, steps, "steps", shown))
        done, told = 0, ""
        ended = False
        while not ended:
            ended = stop.wait(POLL_S)  # then once more, for the last rows
            rows, starts, _, waits = ray.get(board.take.remote(), timeout=ANSWER_TIMEOUT_S)
            trackers.tell(rows)
            for row in rows:
                done = row["step"]
                new = _shown(row, config)
                shown = shown | new if "validation" in row else new | {k: v for k, v in shown.items() if k not in new}
                shown.pop("waiting for", None)
                if starts and starts[-1][1]:
                    shown["passed over"] = "; ".join(starts[-1][1])
                if len(starts) > 1:
                    shown["restarts"] = len(starts) - 1
                shown |= {f"{name} left out": problem for name, problem in trackers.problems.items()}
                report(Progress("train", done, steps, "steps", shown))
            if waits and waits != told:
                report(Progress("train", done, steps, "steps", shown | {"waiting for": waits}))
            told = waits

    watcher = threading.Thread(target=watch, daemon=True, name="zhlm-train-watch")
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join(timeout=ANSWER_TIMEOUT_S)


def _shown(row: dict[str, Any], config: RunConfig) -> dict[str, float | int | str]:
    """The facts beside the bar, from one row of metrics."""
    if "validation" in row:
        return {f"{name} bits/byte": score["bits_per_byte"] for name, score in row["validation"].items()}
    return {
        "loss_nats": row["loss_nats"],
        "tokens_per_s": row["tokens_per_s"],
        "learning_rate": row["learning_rate"],
        "workers": f"{row['workers']}/{config.resources.max_workers}",
    }


def _named(error: TrainingFailedError, resources: ResourcesConfig) -> TrainError | DeadlineError:
    """What ended the training, as one line."""
    failure = getattr(error, "controller_failure", None)
    if isinstance(failure, DeadlineError):
        return failure
    if isinstance(failure, WorkerGroupStartupTimeoutError):
        tries = resources.max_failures + 1
        waited_s = tries * min(START_S, resources.start_timeout_s / tries)
        return DeadlineError(not_started(resources.min_workers, scaling_config(resources).resources_per_worker, waited_s))
    failures = getattr(error, "worker_failures", None)
    for one in (failures or {}).values():
        if isinstance(one, TrainError):
            return TrainError(str(one))
    first = next(iter(failures.values())) if failures else failure or error
    reason = (str(first).strip().splitlines() or [type(first).__name__])[-1]
    return TrainError(f"train: stopped after {resources.max_failures} restarts: {reason}; see the log")


def _facts(where: Run, steps: int, restarts: int) -> dict[str, Any]:
    checkpoint, _ = newest(where.checkpoints)
    rows = read_rows(where.metrics)
    assert checkpoint is not None, f"training ended without a checkpoint of step {steps}"
    stopped = next((r["step"] for r in rows if r.get("stopped_early") and r["step"] == checkpoint.state.step), None)
    assert checkpoint.state.step == (stopped or steps), f"training ended without a checkpoint of step {steps}"
    losses = [r["loss_nats"] for r in rows if "loss_nats" in r]
    last = next(r["validation"] for r in reversed(rows) if "validation" in r)
    scores = ", ".join(f"{name} {score['bits_per_byte']:.3f}" for name, score in last.items())
    done = f"stopped early at step {stopped} of {steps}" if stopped else f"{steps} steps"
    return {
        "steps": checkpoint.state.step,
        "stopped_early": stopped is not None,
        "tokens": checkpoint.state.tokens,
        "seconds": round(checkpoint.state.seconds, 1),
        "restarts": max(0, restarts),
        "loss_nats": losses[-1] if losses else None,
        "validation": last,
        "summary": f"{done}, {checkpoint.state.tokens:,} tokens, bits per byte {scores}",
    }
