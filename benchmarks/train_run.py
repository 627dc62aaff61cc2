"""One arm of train.py or train_start.py, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.pack import QUIET
from zhlm.config.schema import RunConfig


def run_arm(arm: str, config: RunConfig, *more: object, ranks: int = 0) -> dict[str, Any]:
    """One arm in a new process, or in ranks of torchrun; what it found, and how busy the machine was just before."""
    busy = {"busy_before": machine.busy_share()}
    with tempfile.TemporaryDirectory(prefix="zhlm-bench-") as scratch:
        given, result = Path(scratch) / "config.json", Path(scratch) / "result.json"
        given.write_text(config.model_dump_json(), encoding="utf-8")
        launcher = [sys.executable, "-m"]
        if ranks:
            launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
        command = [*launcher, "benchmarks.train_arms", arm, str(given), str(result), *map(str, more)]
        busy["started_at"] = time.time()
        # One thread a rank, as Ray gives a worker of one CPU.
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | QUIET | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"benchmarks: arm {arm} failed:\n{done.stdout[-1000:]}\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    print(f"{arm:14}{json.dumps(busy)}", file=sys.stderr, flush=True)
    return found | busy
