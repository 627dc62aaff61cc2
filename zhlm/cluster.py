"""Connect to Ray, and refuse at once what the cluster can never hold."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import state

from zhlm.config.schema import RunConfig
from zhlm.errors import ClusterError

BOOTSTRAP = Path.home() / "ray_bootstrap_config.yaml"
"""`ray up` leaves its config here on the head node: the cluster can grow."""


ACCELERATOR = "accelerator_type:"
"""How Ray begins the resource that names a node's GPU."""
GPU_GIB = {
    "K80": 12, "P4": 8, "P100": 16, "T4": 16, "V100": 32, "A10G": 24, "A100": 80, "L4": 24, "L40S": 48, "RTX-PRO-6000": 96,
    "H100": 96, "H20": 141, "H200": 141, "B200": 192, "GB200": 192, "B300": 288, "GB300": 288,
}  # fmt: skip
"""Memory of the largest GPU of each name: what exceeds it cannot fit."""


@contextmanager
def connected() -> Iterator[None]:
    """A connection for as long as the block runs; one that exists already is used, and stays. Raises: ClusterError as connect() does."""
    if ray.is_initialized():
        yield
        return
    connect()
    try:
        yield
    finally:
        ray.shutdown()  # also ends the thread that prints what workers say, before the terminal is given back


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names or that runs here; else start a local one. A second call changes nothing.

    Raises: ClusterError when the named cluster does not answer.
    """
    if ray.is_initialized():
        return
    # A local cluster's processes inherit both; a runtime_env would bar them from the workers that Ray starts in advance.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        ray.init(log_to_driver=True)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "the local cluster")
        raise ClusterError(f"cluster: {address} does not answer ({_first_line(error)}); start it or unset RAY_ADDRESS") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_capacity(config: RunConfig) -> None:
    """Raises: ClusterError when the training workers can never fit, however long the run waits."""
    resources = config.resources
    most = most_resources()
    if most is None:
        return
    for name, each in (("CPU", resources.cpus_per_worker), ("GPU", resources.gpus_per_worker)):
        need, have = each * resources.min_workers, most.get(name, 0.0)
        if need > have:
            raise ClusterError(
                f"cluster: {resources.min_workers} workers x {each:g} {name} need {need:g} {name}, the cluster can have {have:g}; "
                f"lower resources.workers or resources.{name.lower()}s_per_worker, or join a larger cluster"
            )


def worker_room(config: RunConfig) -> tuple[int, str] | None:
    """Memory that each of the least training workers has at most, in bytes, and what has it; None where Ray does not tell."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    each = config.resources.gpus_per_worker
    if BOOTSTRAP.exists() or state.state.get_max_resources_from_cluster_config():
        return None  # it can grow by nodes of other kinds
    if each:
        kinds = {key.removeprefix(ACCELERATOR) for node in nodes if node.get("GPU") for key in node if key.startswith(ACCELERATOR)}
        largest = max(kinds, key=lambda kind: GPU_GIB.get(kind, 1 << 20), default="")
        # A worker computes on one GPU, or on a part of it.
        return (int(GPU_GIB[largest] * min(each, 1.0) * 2**30), f"the {largest}") if largest in GPU_GIB else None
    sizes = [int(node.get("memory", 0) + node.get("object_store_memory", 0)) for node in nodes]
    return min(max(sizes), sum(sizes) // config.resources.min_workers), "this cluster"


def most_resources() -> dict[str, float] | None:
    """What the cluster can have at most; None when it can grow by an amount that Ray does not tell."""
    growing = state.state.get_max_resources_from_cluster_config()
    now: dict[str, float] = ray.cluster_resources()
    if growing:
        return {k: max(float(growing.get(k, 0)), now.get(k, 0.0)) for k in {*growing, *now}}
    return None if BOOTSTRAP.exists() else now
