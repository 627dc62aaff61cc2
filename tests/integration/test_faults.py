"""A run on a cluster whose nodes die, come and are taken away: several raylets on this machine, a CPU each."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from conftest import run_data, save_tiny_llama, write_blocks
from metadata_service import MetadataService
from zhlm.checkpoint.state import newest
from zhlm.config.schema import RunConfig
from zhlm.errors import DeadlineError
from zhlm.records import Progress
from zhlm.storage import Run
from zhlm.train import elastic, job

T = TypeVar("T")

DRIVER = """
import sys, ray
from zhlm.config.schema import RunConfig
from zhlm.train import elastic, job
elastic.SETTLE_S, elastic.REST_S = 1.0, 3.0
ray.init(address="auto", log_to_driver=False)
job.run(RunConfig.model_validate_json(sys.argv[1]), lambda progress: None)
"""
BATCH = 24
NOTICE = "GET /latest/meta-data/spot/instance-action"
LIMIT_S = 90.0
"""A machine that others use too may take this long for what takes ten seconds."""

pytestmark = pytest.mark.timeout(300)


def wait_for(what: str, get: Callable[[], T], alive: "subprocess.Popen[str]") -> T:
    """The first truthy answer, while the driver lives."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := get()):
        assert alive.poll() is None, f"the driver ended: {alive.communicate()[0]}"
        assert time.monotonic() < deadline, f"waited {LIMIT_S:g} s for {what}"
        time.sleep(0.05)
    return found


@pytest.fixture
def cloud() -> Iterator[MetadataService]:
    cloud = MetadataService()
    cloud.answers["PUT /latest/api/token"] = "secret"
    yield cloud
    cloud.close()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with a CPU, and none beside it. Any other Ray of this process is left alone."""
    from ray.cluster_utils import Cluster

    for setting, value in {"period_ms": "1000", "timeout_ms": "2000", "failure_threshold": "4"}.items():  # as in cluster.yaml
        monkeypatch.setenv(f"RAY_health_check_{setting}", value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()
    with warnings.catch_warnings():  # Ray leaves a socket of each node to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        del cluster
        gc.collect()


def rows(config: RunConfig) -> list[dict[str, Any]]:
    place = Run.of(config).metrics
    told = [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []
    return [r for r in told if "loss_nats" in r]


def consumed(config: RunConfig, last_step: int) -> list[int]:
    """The numbers of the blocks of all steps that count, from what each rank says that it read."""
    folder = Run.of(config).folder.path / "trace"
    lines = {p.stem: [json.loads(line) for line in p.read_text().splitlines()] for p in folder.iterdir()}
    counts = {line["step"]: line for line in lines["rank_0"]}
    found = []
    for step in range(1, last_step + 1):
        for rank in range(counts[step]["workers"]):
            own = [line for line in lines[f"rank_{rank}"] if {**line, "blocks": 0} == {**counts[step], "blocks": 0}]
            found += [block[0] for block in own[-1]["blocks"]]
    return sorted(found)


def train_on(cluster: Any, config: RunConfig) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, config.model_dump_json()],
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_node_dies_another_comes_and_is_taken_away(cluster: Any, cloud: MetadataService, tmp_path: Path) -> None:
    first = cluster.add_node(num_cpus=1)
    save_tiny_llama(tmp_path / "base")
    write_blocks(tmp_path / "runs" / "tiny", ["zh", "en"])
    data = run_data(tmp_path, steps=100_000, checkpoint_every=10, validate_every=10_000, trace_blocks=True, global_batch_blocks=BATCH)
    data["resources"] = {"workers": [1, 2], "max_failures": 1}
    config = RunConfig.model_validate_json(json.dumps(data))

    def trains(workers: int, after_step: int) -> dict[str, Any] | None:
        return next((r for r in rows(config) if r["workers"] == workers and r["step"] > after_step), None)

    driver = train_on(cluster, config)
    try:
        wait_for("two workers", lambda: trains(2, 12), driver)
        killed_s = time.time()
        os.kill(first.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        alone = wait_for("the worker that is left", lambda: trains(1, 0), driver)
        assert alone["unix_s"] - killed_s < LIMIT_S
        lost = alone["step"]
        assert lost % 10 == 1, "it goes on from the last checkpoint"

        second = cluster.add_node(num_cpus=1)
        both = wait_for("the node that came", lambda: trains(2, lost), driver)

        where = ["--address", cluster.address, "--node-id", second.node_id, "--metadata", cloud.address]
        agent = subprocess.Popen([sys.executable, "-m", "zhlm.spot", "--every", "0.2", *where])
        cloud.answers[NOTICE] = json.dumps(
            {"action": "terminate", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))}
        )
        assert agent.wait(60) == 0
        left = wait_for("the worker on the node that stays", lambda: trains(1, both["step"]), driver)
        last = wait_for("ten more steps", lambda: trains(1, left["step"] + 10), driver)["step"]
    finally:
        driver.kill()
        driver.communicate(timeout=60)
    found = {r["step"]: r["workers"] for r in rows(config)}
    assert sorted(found) == list(range(1, len(found) + 1)), "each step is told once"
    trace = (Run.of(config).folder.path / "trace" / "rank_0.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line["step"] for line in map(json.loads, trace)]
    assert [steps.count(r["step"]) for r in (both, left)] == [1, 1], "who is asked to leave saves first: no step is done twice"
    assert consumed(config, last) == list(range(last * BATCH))
    checkpoint, _ = newest(Run.of(config).checkpoints)
    assert checkpoint is not None and checkpoint.state.step >= last - 20


def three_workers(folder: Path, start_timeout_s: int) -> RunConfig:
    """One more than there are CPUs."""
    save_tiny_llama(folder / "base")
    write_blocks(folder / "runs" / "tiny", ["zh", "en"])
    data = run_data(folder)
    data["resources"] = {"workers": 3, "start_timeout_s": start_timeout_s}
    return RunConfig.model_validate_json(json.dumps(data))


@pytest.mark.usefixtures("ray_local")
def test_too_few_nodes_end_in_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DeadlineError, match=r"the nodes that are left hold 2 workers of \{'CPU': 1.0\}, expected 3; bring nodes back"):
        job.run(three_workers(tmp_path, 2), lambda progress: None)


@pytest.mark.usefixtures("ray_local")
def test_an_interrupt_ends_the_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "ABORT_S", 1.0)
    seen: list[str] = []

    def interrupt(progress: Progress) -> None:
        what = str(progress.facts.get("waiting for"))
        if what.startswith("room") and not seen:
            seen.append(what)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        job.run(three_workers(tmp_path, 300), interrupt)
    assert seen == ["room for 3 workers, there is room for 2"]
