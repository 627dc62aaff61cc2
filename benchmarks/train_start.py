"""From `ray job submit` to the first training step, with the time of each phase on the way; and the same of torchrun with the bare loop.

As a program it is what the submitted job runs: the train stage, as `ray_jobs.train` runs it, with marks. `train_start CONFIG MARKS`
"""

import time

STARTED = time.time()

# ruff: noqa: E402 - what is imported below is part of what is measured

import importlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUILD = ("newest", "load_model", "check_isolation", "make_trainable", "Engine", "held_out", "_mute_step", "_build", "validate", "_step")
"""Of the loop, what ends a phase in a worker; those it does not have are passed over."""


def mark(marks: Path, phase: str, at: float | None = None) -> None:
    """The end of a phase, by any process of this machine."""
    with marks.open("a", encoding="utf-8") as file:
        file.write(json.dumps([phase, at or time.time()]) + "\n")


def marked(function: Callable[..., Any], marks: Path, phase: str) -> Callable[..., Any]:
    def timed(*given: Any, **named: Any) -> Any:
        result = function(*given, **named)
        mark(marks, phase)
        return result

    return timed


# ---- in the job


def driver(config: str, marks: Path) -> int:
    """The train stage with its imports and calls marked."""
    mark(marks, "job server starts the driver", _process_start())
    mark(marks, "driver: Python itself", STARTED)
    from zhlm import pipeline

    mark(marks, "driver: import zhlm.pipeline")

    class Importing:
        """In place of importlib in the pipeline, which loads everything heavy by name."""

        @staticmethod
        def import_module(name: str) -> Any:
            mark(marks, f"driver: before {name}")
            module: Any = importlib.import_module(name)
            mark(marks, f"driver: import {name}")
            if name == "zhlm.cluster":
                module.connect = marked(module.connect, marks, "driver: connect to Ray")
            if name == "zhlm.train.job":
                module._work = _worker(marks)
                trainer_class: Any = importlib.import_module("ray.train.torch").TorchTrainer  # which the stage imported
                fit = trainer_class.fit

                def marked_fit(trainer: Any) -> Any:
                    mark(marks, "driver: until TorchTrainer.fit")
                    return fit(trainer)

                trainer_class.fit = marked_fit
            return module

    pipeline.importlib = Importing  # type: ignore[assignment]
    return pipeline.main(("train",), ["--config", config])


def _process_start() -> float:
    import psutil

    return float(psutil.Process().create_time())


def _worker(marks: Path) -> Callable[[dict[str, Any]], None]:
    """In place of what the stage has each worker run."""

    def timed(settings: dict[str, Any]) -> None:
        import os

        first = os.environ.get("RANK", "0") == "0"
        if first:
            mark(marks, "workers: placed, started, process group")
        loop: Any = importlib.import_module("zhlm.train.loop")
        if first:
            mark(marks, "workers: import zhlm.train.loop")
            for part in BUILD:
                if hasattr(loop, part):
                    setattr(loop, part, marked(getattr(loop, part), marks, f"workers: {part}"))
        loop.train_worker(settings)

    return timed


# ---- around it


class Head:
    """A Ray head of its own with a job server. A context manager."""

    def __init__(self, folder: Path) -> None:
        gcs, self._port, client, agent = _free_ports(4)
        token = folder / "token"
        token.write_text("a" * 40, encoding="utf-8")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip
        self.address = f"http://127.0.0.1:{self._port}"
        ports = [
            f"--port={gcs}",
            f"--dashboard-port={self._port}",
            f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
        ]
        self._folder = tempfile.TemporaryDirectory(prefix="zr", ignore_cleanup_errors=True)
        self._log = (folder / "head.log").open("w", encoding="utf-8")
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={self._folder.name}", *ports]
        self._process = subprocess.Popen(command, env=self.environment, stdout=self._log, stderr=self._log, cwd=folder)

    def __enter__(self) -> "Head":
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.3)
        raise SystemExit(f"benchmarks: the head at {self.address} does not answer; see head.log")

    def __exit__(self, *_: object) -> None:
        import psutil

        top = psutil.Process(self._process.pid)
        processes = [top, *top.children(recursive=True)]
        for process in processes:
            process.terminate()
        for process in psutil.wait_procs(processes, timeout=5)[1]:
            process.kill()
        self._process.wait()
        self._log.close()
        self._folder.cleanup()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def submitted(head: Head, config: Any, folder: Path) -> dict[str, Any]:
    """One `ray job submit` of this folder: seconds until the first step was told, and the end of every phase since then."""
    from benchmarks.train_arms import Steps, forget
    from zhlm.storage import Run

    forget(config)
    file, marks = folder / "submitted.json", folder / "marks.jsonl"
    file.write_text(config.model_dump_json(), encoding="utf-8")
    marks.unlink(missing_ok=True)
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--address", head.address, "--working-dir", str(ROOT), "--"]
    started = time.time()
    with Steps(Run.of(config).metrics.path) as seen:
        done = subprocess.run(
            [*command, "python", "-m", "benchmarks.train_start", str(file), str(marks)],
            capture_output=True, text=True, env=head.environment,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"benchmarks: the job failed:\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
    first = seen.times[0][1]
    lines = [json.loads(line) for line in marks.read_text(encoding="utf-8").splitlines()]
    return {"first_step_s": first - started, "marks": [(phase, at - started) for phase, at in sorted(lines, key=lambda m: m[1])]}


def torchrun(config: Any, ranks: int = 2) -> dict[str, Any]:
    """The bare loop: seconds from the command to the end of its first step."""
    from benchmarks.train_run import run_arm

    found = run_arm("bare", config, ranks=ranks)
    return {"first_step_s": found["first_step_at"] - found["started_at"]}


def breakdown(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of each phase up to the first step, in order; printed as a table too."""
    phases: dict[str, list[float]] = {}
    for found in rounds:
        before = 0.0
        for phase, at in found["marks"]:
            if at <= found["first_step_s"]:
                phases.setdefault(phase, []).append(at - before)
                before = at
        phases.setdefault("first row written", []).append(found["first_step_s"] - before)
    medians = {phase: round(statistics.median(seconds), 2) for phase, seconds in phases.items()}
    for phase, seconds in medians.items():
        print(f"{seconds:8.2f} s  {phase}", file=sys.stderr)
    return medians


if __name__ == "__main__":
    sys.exit(driver(sys.argv[1], Path(sys.argv[2])))
