"""zhlm's training against the loops that one would write by hand: losses, step time, checkpoints, a killed worker, the first step.

Every arm in a process of its own, in turns, the one that goes first changing; medians over the rounds. The last line printed is the
result, as JSON.
"""

import json
import statistics
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.train_run import run_arm
from zhlm.config.schema import RunConfig

CASES = ("parity", "step", "checkpoint", "kill", "start")
GOALS = {
    "parity/bare": 1e-5, "parity/transformers": 1e-3, "step/one": 1.05, "step/two": 1.05, "checkpoint": 1.02,
    "checkpoint/blocked": 0.1, "kill": 1.1, "start": 3.0,
}  # fmt: skip
DROPPED_STEPS = 10
WINDOW_STEPS = 5
"""Step times are told in milliseconds; the mean of so many is one observation."""
NEVER = 10**6
CHECKPOINT_EVERY = 20
PARITY_RATE = 1e-4
"""At ten times this rate training is chaotic: the plain loop, moved by rounding, is 1e-3 from itself after 200 steps."""


def config_of(folder: Path, given: Namespace, **train: Any) -> RunConfig:
    """One run, whose blocks all arms train on; `train` is what a measurement changes."""
    settings = {
        "steps": given.steps, "global_batch_blocks": given.batch, "micro_batch_blocks": given.batch // 4, "schedule": "constant",
        "warmup_share": 0.0, "learning_rate": 1e-3, "log_every": 1, "validate_every": NEVER, "checkpoint_every": NEVER,
        "validation_blocks": 4, "start": "after_packing", "lora": {"r": 16},
    }  # fmt: skip
    workers = train.pop("workers", 1)
    data = {
        "name": "train",
        "storage": {"root": str(folder / "runs")},
        "base": {"model": str(folder / "base")},
        "streams": [{"name": "zh", "role": "new", "paths": [str(folder / "zh.txt")], "held_out": [str(folder / "held_out.txt")]}],
        "pack": {"block_tokens": given.block_tokens},
        "train": settings | train,
        "resources": {"workers": workers},
    }
    return RunConfig.model_validate_json(json.dumps(data))


Arms = dict[str, Callable[[], dict[str, Any]]]


def in_turns(arms: Arms, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Every arm once in each round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for number in range(rounds):
        names = [*arms][number % len(arms) :] + [*arms][: number % len(arms)]
        for name in names:
            found[name].append(arms[name]())
    return found


def step_seconds(found: dict[str, Any]) -> float:
    """The median step, the first ones left out. zhlm tells the sum so far, the others each step."""
    told = found.get("told_s")
    steps = [after - before for before, after in zip([0.0, *told], told, strict=False)] if told else found["step_s"]
    kept = steps[DROPPED_STEPS:] or steps
    return statistics.median(statistics.fmean(kept[i : i + WINDOW_STEPS]) for i in range(0, len(kept), WINDOW_STEPS))


def largest_difference(one: Sequence[float], other: Sequence[float]) -> float:
    assert len(one) == len(other) > 0, f"{len(one)} losses against {len(other)}"
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def against(name: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The ratio of two medians beside its goal, and every raw number."""
    ratio = statistics.median(ours) / statistics.median(theirs)
    rounded = {"ours": [round(x, 4) for x in ours], "theirs": [round(x, 4) for x in theirs]}
    return {"ratio": round(ratio, 4), "goal": GOALS[name], "met": ratio <= GOALS[name]} | rounded


# ---- the cases


def parity(folder: Path, given: Namespace) -> dict[str, Any]:
    """Losses of each step, float32; and how far rounding alone takes the PyTorch loop from itself."""
    config = config_of(folder, given, learning_rate=PARITY_RATE)
    ours = run_arm("zhlm", config)["losses"]
    bare, moved = (run_arm(name, config)["losses"] for name in ("bare", "bare_moved"))
    found: dict[str, Any] = {"parity/rounding_alone": largest_difference(bare, moved)}
    for name, theirs in (("bare", bare), ("transformers", run_arm("transformers", config, ranks=1)["losses"])):
        difference, goal = largest_difference(ours, theirs), GOALS[f"parity/{name}"]
        found[f"parity/{name}"] = {"largest_difference": difference, "goal": goal, "met": difference <= goal, "steps": len(ours)}
    return found | {"losses": [ours[0], ours[-1]]}


def step(folder: Path, given: Namespace) -> dict[str, Any]:
    """Steady state: one worker beside the bare loop, two beside DeepSpeed under torchrun."""
    one, two = config_of(folder, given), config_of(folder, given, workers=2)
    arms: Arms = {
        "zhlm_one": lambda: run_arm("zhlm", one),
        "bare_one": lambda: run_arm("bare", one),
        "zhlm_two": lambda: run_arm("zhlm", two),
        "deepspeed_two": lambda: run_arm("deepspeed", two, ranks=2),
    }
    found = {name: [step_seconds(r) for r in of_arm] for name, of_arm in in_turns(arms, given.rounds).items()}
    return {
        "step/one": against("step/one", found["zhlm_one"], found["bare_one"]),
        "step/two": against("step/two", found["zhlm_two"], found["deepspeed_two"]),
    }


def checkpoint(folder: Path, given: Namespace) -> dict[str, Any]:
    """Wall time of training with a checkpoint every 20 steps over that with none, LoRA alone."""
    lora = {"embeddings": "none", "log_every": CHECKPOINT_EVERY // 2}
    often, never = config_of(folder, given, checkpoint_every=CHECKPOINT_EVERY, **lora), config_of(folder, given, **lora)
    arms: Arms = {"often": lambda: run_arm("zhlm", often), "never": lambda: run_arm("zhlm", never)}
    found = in_turns(arms, given.rounds)
    walls = {name: [r["wall_s"] for r in of_arm] for name, of_arm in found.items()}
    blocked = [statistics.median(r["blocked_s"][:-1]) for r in found["often"]]  # the last one is waited for
    synchronous = [r["synchronous_s"] for r in found["often"]]
    return {
        "checkpoint": against("checkpoint", walls["often"], walls["never"]),
        "checkpoint/blocked": against("checkpoint/blocked", blocked, synchronous),
    }


def kill(folder: Path, given: Namespace) -> dict[str, Any]:
    """From a worker's SIGKILL to the next new step, beside plain Ray Train."""
    config = config_of(folder, given, steps=40, checkpoint_every=10, workers=2)
    arms: Arms = {"zhlm": lambda: run_arm("zhlm_killed", config), "ray": lambda: run_arm("ray_killed", config)}
    found = in_turns(arms, given.rounds)
    seconds = {name: [r["recovery_s"] for r in of_arm] for name, of_arm in found.items()}
    again = {name: [r["steps_done_again"] for r in of_arm] for name, of_arm in found.items()}
    return {"kill": against("kill", seconds["zhlm"], seconds["ray"]) | {"steps_done_again": again}}


def start(folder: Path, given: Namespace) -> dict[str, Any]:
    """From `ray job submit` to the first step, beside torchrun of the bare loop; and where the seconds go."""
    from benchmarks.train_start import Head, breakdown, submitted, torchrun

    config = config_of(folder, given, steps=3, workers=2)
    with Head(folder) as head:
        submitted(head, config, folder)  # once before: a cluster that has run for an hour has its files in memory
        arms: Arms = {"zhlm": lambda: submitted(head, config, folder), "torchrun": lambda: torchrun(config)}
        found = in_turns(arms, given.rounds)
    seconds = {name: [r["first_step_s"] for r in of_arm] for name, of_arm in found.items()}
    return {"start": against("start", seconds["zhlm"], seconds["torchrun"]) | {"where": breakdown(found["zhlm"])}}


def machine_facts() -> dict[str, Any]:
    """The machine and the versions, with those that training depends on."""
    facts = machine.facts()
    return facts | {"versions": facts["versions"] | {name: version(name) for name in ("torch", "deepspeed", "peft", "accelerate")}}


def main() -> None:
    options = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "zhlm-benchmarks" / "train")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--cases", default=",".join(CASES), help="some of them, to look at (default: %(default)s)")
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--batch", type=int, default=16, help="blocks in a step, divisible by 4 (default: %(default)s)")
    options.add_argument("--block-tokens", type=int, default=128)
    options.add_argument("--width", type=int, default=128, help="of the model (default: %(default)s)")
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--documents", type=int, default=12_000, help="stories of the sample (default: %(default)s)")
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    # A folder per size, so that a smoke run does not spoil the blocks of a real one.
    sizes = {name: getattr(given, name) for name in ("block_tokens", "width", "layers", "documents")}
    folder = (given.folder / "-".join(map(str, sizes.values()))).absolute()
    folder.mkdir(exist_ok=True)
    run_arm("prepare", config_of(folder, given), given.documents, given.width, given.layers)
    found: dict[str, Any] = {}
    for name in given.cases.split(","):
        measure: Callable[[Path, Namespace], dict[str, Any]] = globals()[name]
        found |= measure(folder, given)
        print(json.dumps(found), file=sys.stderr, flush=True)
    about = {"steps": given.steps, "batch": given.batch, "rounds": given.rounds} | sizes
    print(json.dumps({"bench": "train", "sizes": about, "results": found, "machine": machine_facts()}))


if __name__ == "__main__":
    main()
