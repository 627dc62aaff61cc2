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


def most_resources() -> dict[str, float] | None:
    """What the cluster can have at most; None when it can grow by an amount that Ray does not tell."""
    growing = state.state.get_max_resources_from_cluster_config()
    now: dict[str, float] = ray.cluster_resources()
    if growing:
        return {k: max(float(growing.get(k, 0)), now.get(k, 0.0)) for k in {*growing, *now}}
    return None if BOOTSTRAP.exists() else now
