"""Training on a real local Ray with two DeepSpeed workers: learns, survives a kill, resumes anywhere."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from torch import distributed

from conftest import run_data, save_tiny_llama, write_blocks
from zhlm.blocks.read import training_reader
from zhlm.blocks.store import LEDGER, beat
from zhlm.checkpoint.made_for import made_for
from zhlm.checkpoint.state import newest
from zhlm.config.schema import RunConfig
from zhlm.errors import DeadlineError, RunError, TrainError
from zhlm.model.load import load_model
from zhlm.objectives.batch import sum_nats
from zhlm.objectives.causal import Causal
from zhlm.records import Progress
from zhlm.storage import Run
from zhlm.train import job
from zhlm.train.board import Board
from zhlm.train.loop import train_worker

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(240)]


TWICE = ("full", "zero3", "plain")
"""Trained to the end, and once more from half-way."""


def prepare(folder: Path, *, workers: int = 2, tied: bool = True, **train: Any) -> RunConfig:
    save_tiny_llama(folder / "base", tied=tied)
    write_blocks(folder / "runs" / "tiny", ["zh", "en"])
    data = run_data(folder, **train)
    data["resources"]["workers"] = workers
    return RunConfig.model_validate_json(json.dumps(data))


def losses(config: RunConfig) -> dict[int, float]:
    rows = [json.loads(line) for line in Run.of(config).metrics.read_text().splitlines()]
    told = [(r["step"], r["loss_nats"]) for r in rows if "loss_nats" in r]
    assert len(dict(told)) == len(told), "each step is told once"
    return dict(told)


def consumed(config: RunConfig) -> list[Any]:
    """The blocks of every step that counts, in the order of training, from what each rank says that it read."""
    folder = Run.of(config).folder.path / "trace"
    lines = {p.stem: [json.loads(line) for line in p.read_text().splitlines()] for p in folder.iterdir()}
    last = {line["step"]: line for line in lines["rank_0"]}
    blocks = []
    for step, counts in sorted(last.items()):
        for rank in range(counts["workers"]):
            same = [own for own in lines[f"rank_{rank}"] if {**own, "blocks": 0} == {**counts, "blocks": 0}]
            blocks += same[-1]["blocks"]
        assert len(blocks) == step * config.train.global_batch_blocks
    return sorted(blocks)


def final_weights(config: RunConfig, folder: str = "checkpoints") -> dict[str, Any]:
    checkpoint, _ = newest(Run.of(config).folder / folder)
    assert checkpoint is not None
    return checkpoint.trainable()


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@dataclass(frozen=True)
class Trained:
    """Runs that one group of two workers trained, and what went wrong with each."""

    configs: dict[str, RunConfig]
    problems: dict[str, Exception | None]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A calm run; three that train 4 steps, and again from their checkpoints of step 2; three that end early."""
    folder = tmp_path_factory.mktemp("group")
    half = {"steps": 4, "checkpoint_every": 2}
    asked: dict[str, dict[str, Any]] = {
        "calm": {"steps": 12, "trace_blocks": True},
        "full": {**half, "zero_stage": 2, "lora": None},
        "zero3": {**half, "zero_stage": 3, "precision": "bfloat16", "gradient_checkpointing": True},
        "plain": {**half, "zero_stage": 2, "lora": {"r": 4, "dropout": 0.0}},
        "stopping": {"validate_every": 2, "early_stop": {"patience": 1, "min_delta": 9.0}},
        "exploding": {"learning_rate": 1e3, "lora": {"r": 4, "alpha": 3e38}, "warmup_share": 0.0},
        "greedy": {"global_batch_blocks": 1 << 40, "micro_batch_blocks": 1 << 40},
    }
    configs = {name: prepare(folder / name, **train) for name, train in asked.items()}
    for name in TWICE:
        (Run.of(configs[name]).folder.path / "first").mkdir()
    names = ["calm", *TWICE, *TWICE, "stopping", "exploding", "greedy"]
    problems = train_in_one_group([configs[name] for name in names])
    return Trained(configs, dict(zip(names, problems, strict=True)))


@pytest.fixture(scope="module")
def calm(group: Trained) -> RunConfig:
    """A run that nothing happens to."""
    return group.configs["calm"]


def test_training_lowers_the_loss_and_validates(calm: RunConfig) -> None:
    found = losses(calm)
    assert list(found) == list(range(1, 13)) and found[12] < found[1] - 0.3
    rows = [json.loads(line) for line in Run.of(calm).metrics.read_text().splitlines()]
    validated = {r["step"]: r["validation"] for r in rows if "validation" in r}
    assert set(validated) == {0, 4, 8, 12} and set(validated[0]) == {"zh", "en"}
    assert validated[12]["zh"]["bits_per_byte"] < validated[0]["zh"]["bits_per_byte"]
    assert Run.of(calm).checkpoints.names() == ["step_00000008", "step_00000012"], "the last two are kept"
    assert [r["step"] for r in rows if r.get("checkpoint_blocked_s", -1) >= 0] == [4, 8, 12]
    found, _ = newest(Run.of(calm).checkpoints)
    assert found is not None and found.facts.validation == validated[12] and found.facts.made_for["block_tokens"] == 32
    assert all(0 <= r["data_wait_share"] < 0.5 and r["tokens_per_s"] > 0 and "packed_share" not in r for r in rows if "loss_nats" in r)


def test_the_trace_is_the_order(calm: RunConfig) -> None:
    blocks = consumed(calm)
    assert [b[0] for b in blocks] == list(range(12 * 6))
    reader = training_reader(Run.of(calm), calm)
    assert [b[1] for b in blocks] == [["zh", "en"][reader.order[i].stream] for i in range(72)]
    once = [tuple(b[1:]) for b in blocks if b[1] == "zh"][:40]
    assert len({*once}) == 40, "40 blocks of zh, each once before any comes again"


class KillsAWorker:
    """A report that kills one training worker of this Ray with SIGKILL once a step is reached, as a lost machine would."""

    def __init__(self, at_step: int) -> None:
        self.at_step, self.killed = at_step, 0

    def __call__(self, progress: Progress) -> None:
        if progress.done >= self.at_step and not self.killed:
            own = {p.pid for p in psutil.Process().children(recursive=True)}
            found = [p for p in psutil.process_iter(["cmdline"]) if p.pid in own]
            workers = [p for p in found if "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]
            if workers:
                self.killed = workers[-1].pid
                os.kill(self.killed, signal.SIGKILL)


class Packs:
    """A report that sees training wait for the packer, and then commits the rest, or fails."""

    def __init__(self, config: RunConfig, fails: bool) -> None:
        self._blocks, self._fails = Run.of(config).blocks, fails
        (self._blocks / "manifest.json").delete()
        self._ledger = (self._blocks / LEDGER).read_text()
        (self._blocks / LEDGER).write_text("")
        beat(self._blocks, "packing")
        self.seen: list[str] = []

    def __call__(self, progress: Progress) -> None:
        waits = str(progress.facts.get("waiting for", ""))
        if waits.startswith("packing") and not self.seen:
            if self._fails:
                beat(self._blocks, "failed", "pack: zh.txt line 3 is broken")
            else:
                (self._blocks / LEDGER).write_text(self._ledger)
        self.seen += [waits] * waits.startswith("packing")


def test_waiting_for_the_packer_and_a_killed_worker_change_nothing(
    calm: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "POLL_S", 0.02)  # the kill must land before the last step
    hit = prepare(tmp_path, steps=12, trace_blocks=True)
    packer, killer = Packs(hit, fails=False), KillsAWorker(at_step=6)

    seen: list[Progress] = []

    def report(progress: Progress) -> None:
        seen.append(progress)
        packer(progress)
        killer(progress)

    facts = job.run(hit, report)
    assert facts["steps"] == seen[-1].done == seen[-1].total == 12
    assert packer.seen and "stream" in packer.seen[0]
    assert killer.killed and facts["restarts"] == 1
    assert losses(hit) == losses(calm) and consumed(hit) == consumed(calm)
    assert largest_difference(final_weights(calm), final_weights(hit)) == 0.0, "same workers, float32: the same bits, dropout included"
    (events,) = (Run.of(hit).folder.path / "tensorboard").iterdir()
    assert events.stat().st_size > 100 * len(Run.of(hit).metrics.read_text().splitlines()), "TensorBoard has the rows too"


def test_a_packer_that_fails_while_training_waits_is_named(tmp_path: Path) -> None:
    early = prepare(tmp_path)
    with pytest.raises(RunError, match=r"packing failed: pack: zh\.txt line 3 is broken"):
        job.run(early, Packs(early, fails=True))


@ray.remote(num_cpus=1)
class OtherJob:
    """Holds a CPU, so that two workers do not fit."""

    def ready(self) -> bool:
        return True


def test_workers_that_cannot_start_end_in_a_named_error(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    resources = config.resources.model_copy(update={"start_timeout_s": 4, "max_failures": 1})
    other = OtherJob.remote()  # type: ignore[attr-defined]
    ray.get(other.ready.remote(), timeout=30)
    try:
        with pytest.raises(DeadlineError, match=r"2 workers .* did not start within 4 s, free now are 1 CPU"):
            job.run(config.model_copy(update={"resources": resources}), lambda _: None)
    finally:
        ray.kill(other)


def test_too_little_memory_is_one_line(group: Trained) -> None:
    """For which nobody is started again: tests/unit/train/test_train_shortage.py."""
    said = r"^train: out of memory in building the model, where \d+\.00 GiB more were asked.*lower train\.micro_batch"
    assert re.search(said, str(group.problems["greedy"]))


def one_big_batch(config: RunConfig) -> tuple[float, float]:
    """The first step's blocks through the base by plain PyTorch, all at once: nats per target, and the norm of the gradients."""
    model = load_model(config.base.model).requires_grad_(True)
    blocks = range(config.train.global_batch_blocks)
    batch = Causal().make_batch(training_reader(Run.of(config), config).read(blocks), blocks)
    loss = sum_nats(model, batch) / batch.num_targets
    loss.backward()
    return float(loss.detach()), float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())


def train_one_after_another(settings: dict[str, Any]) -> None:
    """Several runs in the same processes: starting the processes is what takes long."""
    for one in settings["runs"]:
        distributed.barrier()
        if distributed.get_rank() == 0:
            set_last_aside(Path(one["folder"]))
        distributed.barrier()
        try:
            train_worker(dict(one))
        except TrainError as error:
            ray.get(one["board"].fail.remote(error))


def set_last_aside(folder: Path) -> None:
    """Of a run that was trained already: what comes then goes on from half-way."""
    last = folder / "checkpoints" / "step_00000004"
    if last.exists():
        last.rename(folder / "first" / last.name)


def test_runs_resume_to_the_bit_and_hand_over_to_other_stages_and_worlds(group: Trained, tmp_path: Path) -> None:
    """All stages: test_matrix.py."""
    assert [name for name, problem in group.problems.items() if problem] == ["exploding", "greedy"]
    configs = {name: group.configs[name] for name in TWICE}
    once = {name: final_weights(c, "first") for name, c in configs.items()}
    assert len(list((Run.of(configs["full"]).folder.path / "first" / "step_00000004").glob("optimizer-0000?-of-00002.safetensors"))) == 2
    assert {name: largest_difference(once[name], final_weights(c)) for name, c in configs.items()} == dict.fromkeys(configs, 0.0)

    moved = prepare(tmp_path / "moved", workers=1, steps=4, checkpoint_every=2, zero_stage=3, lora={"r": 4, "dropout": 0.0})
    halfway = Run.of(configs["plain"]).checkpoints.path / "step_00000002"
    shutil.copytree(halfway, Run.of(moved).checkpoints.path / halfway.name)
    assert train_in_one_group([moved]) == [None]
    expected = {step: loss for step, loss in losses(configs["plain"]).items() if step > 2}
    assert losses(moved) == pytest.approx(expected, abs=1e-5), "two ZeRO-2 workers handed over to one ZeRO-3 worker"
    assert largest_difference(once["plain"], final_weights(moved)) < 1e-4


def test_the_first_step_is_that_of_one_big_batch_in_plain_pytorch(group: Trained) -> None:
    full = group.configs["full"]
    first = json.loads(Run.of(full).metrics.read_text().splitlines()[1])
    assert first["step"] == 1, "three blocks for each of two ranks, in passes of two"
    assert (first["loss_nats"], first["grad_norm"]) == pytest.approx(one_big_batch(full), abs=1e-6)


def test_what_does_not_get_better_stops_early_and_what_explodes_is_named(group: Trained) -> None:
    facts = job._facts(Run.of(group.configs["stopping"]), 8, 0)
    assert facts["steps"] == 2 and facts["stopped_early"] and facts["summary"].startswith("stopped early at step 2 of 8, ")
    assert str(group.problems["exploding"]).startswith("train: step 1 has a gradient norm of inf")


def train_in_one_group(configs: list[RunConfig]) -> list[Exception | None]:
    """What job.run does, for several runs in one worker group. Returns what went wrong with each."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    boards = [Board.remote() for _ in configs]  # type: ignore[attr-defined]
    runs = []
    for config, board in zip(configs, boards, strict=True):
        run = Run.of(config)
        more = {"steps": config.train.steps, "made_for": made_for(config, run), "board": board}
        runs.append({"config": config.model_dump_json(), "folder": str(run.folder), **more})
    TorchTrainer(
        train_one_after_another,
        train_loop_config={"runs": runs},
        scaling_config=job.scaling_config(configs[0].resources),
        torch_config=TorchConfig(backend="gloo"),
    ).fit()
    return [error for _, _, error, _ in ray.get([board.take.remote() for board in boards], timeout=60)]


PROMETHEUS = """
import sys, time, ray
from urllib.request import urlopen
from zhlm.track.gauges import Prometheus
ray.init(log_to_driver=False)
gauges = Prometheus("gauged")
node = next(n for n in ray.nodes() if n["Alive"])
deadline_s, lines = time.monotonic() + 60, []
while len(lines) < 4 and time.monotonic() < deadline_s:
    gauges.log(7, {"loss_nats": 2.5, "bits_per_byte/zh": 1.5, "bits_per_byte/en": 0.5, "unknown": 1.0}, time.time())
    time.sleep(0.5)
    with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_zhlm_train_") and "gauged" in line]
print("\\n".join(lines))
"""


def test_prometheus_finds_the_gauges_at_the_drivers_node(ray_local: dict[str, str]) -> None:
    """In a process of its own, as a driver is; Ray exports every ten seconds, here every second."""
    environment = os.environ | ray_local | {"RAY_metrics_report_interval_ms": "1000"}
    done = subprocess.run([sys.executable, "-c", PROMETHEUS], capture_output=True, text=True, timeout=120, env=environment)
    found = {line.split("{")[0] + "".join(re.findall(r'stream="\w+"', line)): float(line.split()[-1]) for line in done.stdout.splitlines()}
    bits = {'ray_zhlm_train_bits_per_bytestream="zh"': 1.5, 'ray_zhlm_train_bits_per_bytestream="en"': 0.5}
    assert found == {"ray_zhlm_train_step": 7.0, "ray_zhlm_train_loss_nats": 2.5} | bits, done.stderr
