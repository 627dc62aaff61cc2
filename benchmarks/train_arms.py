"""What train.py measures, each in a process of its own: zhlm's training and the hand-written loops, on one run's blocks.

python -m benchmarks.train_arms ARM CONFIG_JSON RESULT_JSON
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from zhlm.config.schema import RunConfig
from zhlm.storage import Run

WATCH_S = 0.01


# ---- what all arms train on


def prepare(config: RunConfig, documents: int, width: int, layers: int) -> None:
    """Stories of the sample, a tokenizer and a random Llama for them, and the pack stage; what is there already stays."""
    import ray

    from benchmarks.arms import run_pack
    from zhlm.config.schema import ScratchBaseConfig
    from zhlm.sample.base import new_model, train_tokenizer
    from zhlm.sample.corpus import stories

    (stream,) = config.streams
    if not (Path(config.base.model) / "tokenizer.json").exists():
        texts = stories("zh", documents, config.seed)
        for path, some in ((stream.paths[0], texts[200:]), (stream.held_out[0], texts[:200])):
            Path(path).write_text("".join(f"{t}\n" for t in some), encoding="utf-8")
        tokenizer = train_tokenizer(texts[:5000], 2048, config.pack.block_tokens)
        sizes = ScratchBaseConfig(paths=["-"], layers=layers, width=width, positions=max(256, config.pack.block_tokens))
        new_model(tokenizer, sizes, config.seed).save_pretrained(config.base.model)
        tokenizer.save_pretrained(config.base.model)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    run_pack(config)


class Steps:
    """Sees the rows of metrics.jsonl appear: when each step was told, by the clock of the file."""

    def __init__(self, metrics: Path, on_step: Callable[[int], None] = lambda step: None) -> None:
        self.times: list[tuple[int, float]] = []
        self._metrics, self._on_step, self._seen_ns, self._stop = metrics, on_step, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Steps":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_S):
            try:
                changed_ns = self._metrics.stat().st_mtime_ns
                lines = self._metrics.read_bytes().splitlines() if changed_ns != self._seen_ns else []
                rows = [row for row in map(json.loads, lines[-3:]) if "loss_nats" in row]  # others tell of validation
            except (OSError, json.JSONDecodeError):  # not there yet, or half written
                continue
            if rows and (not self.times or rows[-1]["step"] != self.times[-1][0]):
                self.times.append((rows[-1]["step"], changed_ns / 1e9))
                self._on_step(rows[-1]["step"])
            self._seen_ns = changed_ns

    def at(self, step: int) -> float:
        return next(t for s, t in self.times if s >= step)


# ---- zhlm


def zhlm_steps(config: RunConfig) -> dict[str, Any]:
    """The train stage from nothing; its losses, the seconds of its steps, and the wall time between the first row and the last."""
    import ray

    from zhlm.train import job

    forget(config)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    assert config.train.steps is not None, "the benchmark sets it"
    with Steps(Run.of(config).metrics.path) as seen:
        facts = job.run(config, lambda _: None)
        time.sleep(5 * WATCH_S)
    every = [json.loads(line) for line in Run.of(config).metrics.read_text().splitlines()]
    rows = [r for r in every if "loss_nats" in r]
    first = config.train.log_every
    return {
        "losses": [r["loss_nats"] for r in rows],
        "told_s": [r["seconds"] for r in rows],
        "wall_s": seen.at(config.train.steps) - seen.at(first),
        "blocked_s": [r["checkpoint_blocked_s"] for r in every if "checkpoint_blocked_s" in r],
        "facts": facts,
        "synchronous_s": synchronous_s(config),
    }


def synchronous_s(config: RunConfig) -> float:
    """What the newest checkpoint takes to write while nothing else goes on."""
    from zhlm.checkpoint.state import newest, save

    found, _ = newest(Run.of(config).checkpoints)
    assert found is not None, "training ends with one"
    trainable, optimizer = dict(found.trainable()), dict(found.optimizer())
    started_s = time.monotonic()
    written = save(Run.of(config).folder / "synchronous", found.state, trainable, optimizer)
    took_s = time.monotonic() - started_s
    written.delete()
    return took_s


def zhlm_killed(config: RunConfig) -> dict[str, Any]:
    """The same with a worker killed in the middle."""
    import ray

    from zhlm.train import job

    forget(config)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    return recovery(config, Run.of(config).metrics.path, lambda: job.run(config, lambda _: None))


def forget(config: RunConfig) -> None:
    """Of the run, keep only its blocks."""
    run = Run.of(config)
    for place in (run.checkpoints, run.metrics, run.folder / "ray", run.folder / "trace"):
        if place.exists():
            place.delete()


# ---- a worker killed


def recovery(config: RunConfig, metrics: Path, run: Callable[[], Any]) -> dict[str, Any]:
    """From the SIGKILL of a worker, half a checkpoint's distance behind the last one, to the next step that was not done before."""
    killed: list[tuple[int, float]] = []
    every = config.train.checkpoint_every
    at_step = 2 * every + every // 2

    def kill(step: int) -> None:
        if step >= at_step and not killed:
            killed.append((step, time.time()))
            os.kill(training_workers()[-1], signal.SIGKILL)

    with Steps(metrics, kill) as seen:
        run()
        time.sleep(5 * WATCH_S)
    assert killed, f"step {at_step} was never seen"
    (step, killed_at), after = killed[0], [s for s, t in seen.times if t > killed[0][1]]
    again = [s for s in after if s <= step]
    done_at = next(t for s, t in seen.times if s > step and t > killed_at)
    return {"recovery_s": done_at - killed_at, "killed_at_step": step, "steps_done_again": len(set(again))}


def training_workers() -> list[int]:
    """Of this process's Ray."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return sorted(p.pid for p in children if "RayTrainWorker" in " ".join(p.cmdline()))


# ---- by hand


def by_hand(arm: str, config: RunConfig) -> dict[str, Any] | None:
    """One of the loops of train_loops.py, also as a rank of torchrun; only rank 0 has a result."""
    from torch import distributed

    from benchmarks import train_loops

    losses: list[float] = []
    seconds: list[float] = []
    at: list[float] = []

    def each_step(step: int, took_s: float, loss: float) -> None:
        losses.append(loss)
        seconds.append(took_s)
        at.append(time.time())

    steps = config.train.steps
    assert steps is not None, "the benchmark sets it"
    if not arm.startswith("bare"):
        os.environ |= {"DS_ACCELERATOR": "cpu"}
    if "RANK" in os.environ and arm != "transformers":
        distributed.init_process_group("gloo", timeout=timedelta(seconds=600))
    if arm == "transformers":
        train_loops.transformers_trainer(config, steps, each_step, deepspeed=True)
    else:
        kinds = {"bare": train_loops.Torch, "bare_moved": train_loops.Moved, "deepspeed": train_loops.DeepSpeed}
        train_loops.train(kinds[arm], config, steps, each_step)
    return {"losses": losses, "step_s": seconds, "first_step_at": at[0]} if int(os.environ.get("RANK", "0")) == 0 else None


def main(arm: str, config: RunConfig, result: Path) -> dict[str, Any] | None:
    """Run one arm."""
    if arm == "zhlm":
        return zhlm_steps(config)
    if arm == "zhlm_killed":
        return zhlm_killed(config)
    if arm == "ray_killed":
        from benchmarks.train_loops import ray_train

        folder = result.parent / "ray"
        folder.mkdir()
        return recovery(config, folder / "metrics.jsonl", lambda: ray_train(config, config.train.steps or 0, folder))
    return by_hand(arm, config)


if __name__ == "__main__":
    name, given, out = sys.argv[1:4]
    run_config = RunConfig.model_validate_json(Path(given).read_text(encoding="utf-8"))
    if name == "prepare":
        prepare(run_config, *map(int, sys.argv[4:]))
    elif (found := main(name, run_config, Path(out))) is not None:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
