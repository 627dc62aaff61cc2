"""How many workers train at any time, and which ends of a worker group are no failures.

Ray Train decides both in its controller; these are its two policies, made exact. Ray's own counts what nodes have in total, up to 20 s ago,
drained and dead ones included: it starts more workers than fit, waits for them until the start's timeout, and where fewer than the least
are there it waits for ever. A group that it makes larger is torn down without a word, and the steps since the last checkpoint are lost.

Here the controller asks, through the board: the workers end the step they are at, save, and leave with Regroup. What is there then starts.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._private.state import state as cluster
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import NoopDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from zhlm.cluster import BOOTSTRAP
from zhlm.errors import DeadlineError, TrainError, ZhlmError
from zhlm.train.feed import Regroup

log = logging.getLogger("zhlm.train.elastic")

LOOK_S = 1.0
"""How often the controller looks at the nodes while the workers run."""
SETTLE_S = 5.0
"""How long room for more workers must last: nodes that come together are taken up together, by one restart."""
REST_S, MOST_REST_S = 30.0, 600.0
"""How long a group trains before it is given up for a larger one; twice as long after each time that this brought less than it promised."""
GONE_S = 30.0
"""How long the least workers may be missing where no node can come."""
ANSWER_S = 2.0
"""A node's Ray that does not take a connection within this time is gone, whatever the head still believes."""
LEAVE_S = 5
"""How long workers may take to close their connections; those that wait for a lost machine never do."""
ABORT_S = 10.0
"""How long an interrupted controller may take to end its workers."""


class Elastic(ElasticScalingPolicy):  # type: ignore[misc]
    """As many workers as fit now, between the least and the most. Runs in Ray Train's controller, on the driver's machine."""

    def __init__(self, scaling_config: Any, board: Any, start_timeout_s: float) -> None:
        super().__init__(scaling_config)
        self._board, self._start_timeout_s = board, start_timeout_s
        self._own: Counter[str] = Counter()
        """Workers of the group on each node, when last seen."""
        self._group: Any = None
        """The placement group of that one, which holds its places until the next one starts."""
        self._unseen = 0
        """Workers of a group that was started and not seen yet."""
        self._settle_s, self._rest_s, self._least_rest_s = SETTLE_S, REST_S, REST_S
        self._wanted = 0
        self._looked_s = float("-inf")
        self._short_since_s: float | None = None
        self._room_since_s: float | None = None

    def after_controller_start(self, train_run_context: Any) -> None:
        os.environ.setdefault(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, str(LEAVE_S))
        TrainController.worker_group_cls = Group  # of this process, which is the controller's alone
        super().after_controller_start(train_run_context)

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Raises: DeadlineError when the least workers found no room for too long."""
        self._maybe_send_resource_request()
        with _head_may_be_away():
            if workers := self._workers_now():
                return self._get_resize_decision(workers)
        waited_s = time.monotonic() - (self._short_since_s or time.monotonic())
        if waited_s > self._start_timeout_s + GONE_S:
            raise DeadlineError(
                f"train: the cluster's nodes could not be looked at for {waited_s:.0f} s; look whether its head lives, and run the same "
                "command again"
            )
        time.sleep(LOOK_S / 2)
        return NoopDecision()

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Never a resize: where one is due, the workers are asked to leave."""
        self._maybe_send_resource_request()
        with _head_may_be_away():
            self._watch(worker_group_state)
        return NoopDecision()

    def _workers_now(self) -> int:
        """How many should start; 0: not yet. Raises: DeadlineError."""
        now, config = time.monotonic(), self.scaling_config
        self._short_since_s = self._short_since_s or now
        waited_s = now - self._short_since_s
        slots, leaving = self._free() + self._places(), cluster.get_draining_nodes()
        fits = sum(slots[node] for node in answering(ray.nodes(), slots) if node not in leaving)
        settled = waited_s > self._settle_s
        if not settled and fits < config.max_workers and not self._own:
            settled = not can_grow() and fits >= self._whole().total()  # no more can come
        if settled and fits < config.min_workers and self._unseen:  # it ended before it was seen, and may hold its places
            fits, self._unseen = self._unseen, 0
        if fits >= config.max_workers or (fits >= config.min_workers and (self._own or settled)):
            self._own, self._unseen = Counter(), min(fits, config.max_workers)
            self._short_since_s = self._room_since_s = None
            return self._unseen
        if fits < config.min_workers:
            self._check_waited(waited_s)
            self._board.wait.remote(f"room for {config.min_workers} workers, there is room for {fits}")
        return 0

    def _watch(self, worker_group_state: Any) -> None:
        """Look at the nodes once a second, and ask the workers to leave where that is due."""
        now, self._short_since_s = time.monotonic(), None
        if now - self._looked_s < LOOK_S and not self._unseen:
            return
        workers = worker_group_state.num_workers
        if self._unseen:  # a group made larger in vain rests longer
            self._rest_s = min(2 * self._rest_s, MOST_REST_S) if workers < self._wanted else self._least_rest_s
        self._looked_s, self._unseen = now, 0
        self._own = Counter(w.metadata.node_id for w in worker_group_state.workers)
        self._group = worker_group_state.placement_group_handle.placement_group
        leaving = sorted(self._own.keys() & cluster.get_draining_nodes().keys())
        room = self.scaling_config.max_workers - workers
        more = min(room, self._free().total()) if room > 0 else 0
        self._room_since_s = (self._room_since_s or now) if more else None
        self._wanted = 0
        if leaving:
            self._board.ask.remote(f"node {leaving[0][:12]} is to be taken away")
        elif self._room_since_s and now - self._room_since_s > self._settle_s and now - worker_group_state.start_time > self._rest_s:
            self._wanted = workers + more
            self._board.ask.remote(f"there is room for {self._wanted} workers, {workers} train")

    def _places(self) -> Counter[str]:
        """Those of the group that ended, by node: Ray moves lost ones to other nodes, also to one that comes for a dead one."""
        if not self._own:
            return Counter()
        nodes = ray.util.placement_group_table(self._group)["bundles_to_node_id"].values()
        return Counter(node for node in nodes if node)

    def _free(self) -> Counter[str]:
        """Workers that each node has room for; none where it is to be taken away."""
        leaving = cluster.get_draining_nodes()
        free = {n: r for n, r in cluster.available_resources_per_node().items() if n not in leaving}
        return slots_of(free, self.scaling_config._resources_per_worker_not_none)

    def _whole(self) -> Counter[str]:
        """Workers that each node would have room for if nothing else ran there."""
        leaving = cluster.get_draining_nodes()
        whole = {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"] and n["NodeID"] not in leaving}
        return slots_of(whole, self.scaling_config._resources_per_worker_not_none)

    def _check_waited(self, waited_s: float) -> None:
        least, each, hold = self.scaling_config.min_workers, self.scaling_config._resources_per_worker_not_none, self._whole().total()
        lost = hold < least and not can_grow()
        if waited_s <= (min(GONE_S, self._start_timeout_s) if lost else self._start_timeout_s):
            return
        if not lost:
            raise DeadlineError(not_started(least, each, self._start_timeout_s))
        raise DeadlineError(
            f"train: the nodes that are left hold {hold} workers of {each}, expected {least}; bring nodes back, or lower "
            "resources.workers, and run the same command again"
        )


class Group(WorkerGroup):  # type: ignore[misc]
    """A worker group that a worker's death at any moment of its start does not end the training with, nor leaves its places taken."""

    def _start(self) -> None:
        try:
            super()._start()
        except RayActorError as error:
            if self.has_started():
                self.shutdown()
            raise WorkerGroupStartupFailedError("a worker died right at the start") from error


class Forgiving(DefaultFailurePolicy):  # type: ignore[misc]
    """Workers that leave when asked have not failed; those that ran out of memory are not started again."""

    def make_decision(self, training_failed_error: Any) -> Any:
        failures = getattr(training_failed_error, "worker_failures", None) or {}
        if any(isinstance(f, TrainError) for f in failures.values()):
            return FailureDecision.RAISE  # it would come again
        if any(isinstance(f, Regroup) for f in failures.values()):
            return FailureDecision.RETRY
        return super().make_decision(training_failed_error)


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer with the two policies above."""

    def __init__(self, *args: Any, board: Any, start_timeout_s: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._policy = Elastic(self.scaling_config, board, start_timeout_s)

    def _register_sigint_handler(self, controller: Any) -> None:
        """As Ray's, for a controller that may be waiting and not hear of it."""

        def end(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the second time ends at once
            with suppress(RayActorError, GetTimeoutError):
                ray.get(controller.abort.remote(), timeout=ABORT_S)
            ray.kill(controller)
            sys.exit(0)

        signal.signal(signal.SIGINT, end)

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        failures = Forgiving(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**settings | {"scaling_policy": self._policy, "failure_policy": failures})


@contextmanager
def _head_may_be_away() -> Iterator[None]:
    """In the controller any error ends the training, and a look that failed must not: the next one comes soon."""
    try:
        yield
    except ZhlmError:
        raise
    except Exception:
        log.warning("the nodes could not be looked at", exc_info=True)


def can_grow() -> bool:
    """Whether nodes may come by themselves."""
    return BOOTSTRAP.exists() or bool(cluster.get_max_resources_from_cluster_config())


def slots_of(nodes: Mapping[str, Mapping[str, float]], each: Mapping[str, float]) -> Counter[str]:
    """How many workers fit on each node, by what a worker takes of each resource."""
    asked = {name: amount for name, amount in each.items() if amount > 0}
    return Counter({node: int(min(has.get(name, 0.0) / amount + 1e-6 for name, amount in asked.items())) for node, has in nodes.items()})


def answering(nodes: Iterable[Mapping[str, Any]], wanted: Iterable[str]) -> list[str]:
    """Those of the wanted nodes whose Ray takes connections now. The head believes in a dead one for some seconds more."""
    wanted = {*wanted}
    addresses = {n["NodeID"]: (n["NodeManagerAddress"], n["NodeManagerPort"]) for n in nodes if n["Alive"] and n["NodeID"] in wanted}
    with ThreadPoolExecutor(max_workers=max(1, min(64, len(addresses)))) as pool:
        return [node for node, there in zip(addresses, pool.map(_answers, addresses.values()), strict=True) if there]


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def not_started(workers: int, each: Mapping[str, float], timeout_s: float) -> str:
    free = ray.available_resources()
    return (
        f"train: {workers} workers of {dict(each)} did not start within {timeout_s:g} s, free now are "
        f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU; wait for other jobs, or raise resources.start_timeout_s"
    )
