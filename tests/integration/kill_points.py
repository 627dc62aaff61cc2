"""One training in a small process that is killed again and again: the real loop on one rank, without Ray around it.

    python kill_points.py '[{"config": {...}, "folder": "...", "steps": 300, "kills": 50, "seed": 3}]'

This process only imports, which takes ten seconds; each attempt is a fork of it, which takes one. An attempt kills itself: some time after
a step began, or in the thread that saves, before or after a certain write, sync, rename or deletion. Prints where, as JSON, for each run.
"""

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}

import deepspeed  # noqa: F401 - before the first fork
import torch
from torch import distributed

from zhlm.checkpoint import files
from zhlm.storage import Place
from zhlm.train import loop

MOST = {"piece": 200, "fsync": 10, "replace": 5, "rename": 2, "delete": 2}
"""Of each kind of event in the thread that saves, the last one to be killed at: two saves or so have as many."""


class Board:
    """Nobody reads what is told."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *_: "")


def without_ray() -> SimpleNamespace:
    """What the loop uses of Ray, on the only rank."""
    train = SimpleNamespace(
        get_context=lambda: SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1),
        torch=SimpleNamespace(get_device=lambda: torch.device("cpu")),
        report=lambda metrics: None,
    )
    return SimpleNamespace(get=lambda answer, timeout: answer, train=train)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class At:
    """Dies at the n-th event of a kind."""

    def __init__(self, chance: random.Random) -> None:
        self.kind = chance.choice(["step", "step", "step", *MOST])
        self.number = chance.randint(1, MOST.get(self.kind, 5))
        self.before = chance.random() < 0.5
        self.delay_s = chance.uniform(0, 0.05)
        self._seen = 0

    def reached(self) -> bool:
        self._seen += 1
        return self._seen == self.number

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            here = threading.current_thread().name.startswith("zhlm-save") and self.reached()
            if here and self.before:
                die()
            result = function(*arguments, **named)
            if here:
                die()
            return result

        return watched

    def arm(self) -> None:
        if self.kind == "step":
            step = loop._step

            def timed(*arguments: Any) -> Any:
                if self.reached():
                    threading.Timer(self.delay_s, die).start()
                return step(*arguments)

            loop._step = timed
        elif self.kind == "piece":
            pieces = files._pieces

            def cut_off(tensors: Any) -> Iterator[memoryview]:
                for piece in pieces(tensors):
                    if self.reached():
                        yield piece[: len(piece) // 2]  # on the way to the disk
                        die()
                    yield piece

            files._pieces = cut_off
        elif self.kind == "delete":
            Place.delete = self.around(Place.delete)  # type: ignore[method-assign]
        else:
            setattr(os, self.kind, self.around(getattr(os, self.kind)))


def attempt(asked: dict[str, Any], at: At | None) -> int:
    """Fork, and train there. Returns how the process ended, as the kernel tells it."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        os.dup2(2, 1)  # DeepSpeed prints
        torch.set_num_threads(1)
        loop.ray = without_ray()  # type: ignore[assignment]
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        if at is not None:
            at.arm()
        loop.train_worker({"config": json.dumps(asked["config"]), "folder": asked["folder"], "steps": asked["steps"], "board": Board()})
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def train(asked: dict[str, Any]) -> dict[str, Any]:
    started_s, chance, killed, inside = time.monotonic(), random.Random(asked["seed"]), Counter[str](), 0
    checkpoints = Path(asked["folder"]) / "checkpoints"
    for _ in range(asked["kills"]):
        at = At(chance)
        status = attempt(asked, at)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{vars(at)} ended with {status}"
        killed[at.kind] += 1
        inside += any(path.name.startswith(".step_") for path in checkpoints.glob(".*"))
    assert attempt(asked, None) == 0, "the last attempt finishes"
    return {"killed": killed, "inside_a_save": inside, "seconds": round(time.monotonic() - started_s, 1)}


if __name__ == "__main__":
    print(json.dumps([train(asked) for asked in json.loads(sys.argv[1])]))
