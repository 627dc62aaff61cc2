"""How many workers train, on a cluster and a clock that exist in this test only."""

import pickle
import socket
from collections import Counter
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from zhlm.errors import DeadlineError
from zhlm.train import elastic
from zhlm.train.elastic import Elastic, Forgiving, Group, answering, slots_of
from zhlm.train.feed import Regroup

CPU = {"CPU": 1.0}


class Told:
    """A board that only listens."""

    def __init__(self) -> None:
        self.asks: list[str] = []
        self.ask = SimpleNamespace(remote=self.asks.append)
        self.wait = SimpleNamespace(remote=lambda what: None)


class Nodes:
    """One CPU each; what the policy asks Ray for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.names, self.taken, self.draining, self.silent = list(names), Counter[str](), set[str](), set[str]()
        self.grows, self.now = False, 1000.0
        monkeypatch.setattr(elastic.cluster, "get_draining_nodes", lambda: dict.fromkeys(self.draining, 0))
        free = lambda: {n: {"CPU": 1.0 - self.taken[n]} for n in self.names}  # noqa: E731
        monkeypatch.setattr(elastic.cluster, "available_resources_per_node", free)
        monkeypatch.setattr(elastic, "can_grow", lambda: self.grows)
        nodes = lambda: [{"NodeID": n, "Alive": True, "Resources": CPU} for n in self.names]  # noqa: E731
        monkeypatch.setattr(elastic.ray, "nodes", nodes)
        monkeypatch.setattr(elastic.ray, "available_resources", lambda: {"CPU": 1.0})
        monkeypatch.setattr(elastic.ray.util, "placement_group_table", lambda group: {"bundles_to_node_id": group})
        monkeypatch.setattr(elastic, "answering", lambda _, wanted: [n for n in wanted if n in self.names and n not in self.silent])
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(elastic, "time", clock)
        monkeypatch.setattr(Elastic, "_maybe_send_resource_request", lambda self: None)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def started(self, policy: Elastic) -> int | None:
        """Workers of the group that starts now; they take their places, the ones before are gone."""
        decision = policy.make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            return None
        there = [n for n in self.names if n not in self.draining | self.silent]
        self.taken = Counter(there[: decision.num_workers])
        return int(decision.num_workers)

    def runs(self, policy: Elastic, seconds: float, since: float | None = None) -> None:
        workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=n)) for n in self.taken.elements()]
        self.places = dict(enumerate(self.taken.elements()))
        handle = SimpleNamespace(placement_group=self.places)
        since = self.now if since is None else since
        state = SimpleNamespace(workers=workers, num_workers=len(workers), start_time=since, placement_group_handle=handle)
        for _ in range(int(seconds)):
            self.now += 1.01
            assert isinstance(policy.make_decision_for_running_worker_group(state, None), NoopDecision), (
                "workers are asked, never torn down"
            )


def policy_of(workers: int | tuple[int, int], start_timeout_s: float = 600) -> tuple[Elastic, Told]:
    board = Told()
    return Elastic(ScalingConfig(num_workers=workers, resources_per_worker=CPU), board, start_timeout_s), board


def test_a_run_starts_with_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, "a", "b", "c")
    assert nodes.started(policy_of((1, 2))[0]) == 2
    nodes.taken.clear()
    assert nodes.started(policy_of((1, 8))[0]) == 3, "at once, where no node can come"
    nodes.taken = Counter("a")  # another job's
    policy, _ = policy_of((1, 8))
    assert nodes.started(policy) is None, "it may end"
    nodes.now += 6
    assert nodes.started(policy) == 2


def test_a_dead_node_is_not_counted_even_if_the_head_believes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, "a", "b", "c")
    policy, board = policy_of((1, 3))
    assert nodes.started(policy) == 3
    nodes.runs(policy, 2)
    nodes.silent = {"c"}
    assert nodes.started(policy) == 2, "at once: the places of the group that ended are its own"
    assert board.asks == []


def test_a_node_that_comes_for_a_dead_one_counts_though_the_group_that_ended_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, "a", "b")
    policy, _ = policy_of(2)
    assert nodes.started(policy) == 2
    nodes.runs(policy, 2)
    nodes.names, nodes.places[1] = ["a"], ""  # where Ray has no place for it
    assert nodes.started(policy) is None
    nodes.names, nodes.places[1], nodes.taken = ["a", "new"], "new", Counter(["a", "new"])
    assert nodes.started(policy) == 2


def test_a_group_that_ended_before_it_was_seen_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, "a", "b")
    policy, _ = policy_of(2)
    assert nodes.started(policy) == 2
    began = nodes.now
    while nodes.started(policy) != 2:
        assert nodes.now < began + 10
    nodes.runs(policy, 1)
    assert nodes.started(policy) == 2


def test_who_is_on_a_node_that_goes_is_asked_to_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, "a", "b", "c")
    policy, board = policy_of((1, 2))
    nodes.started(policy)
    nodes.draining = {"c"}
    nodes.runs(policy, 3)
    assert board.asks == [], "none of ours is there"
    nodes.draining = {"b"}
    nodes.runs(policy, 2)
    assert board.asks == ["node b is to be taken away"] * 2
    assert nodes.started(policy) == 2, "on a and c"


def test_room_is_taken_up_when_it_lasts_and_not_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, "a")
    policy, board = policy_of((1, 2))
    assert nodes.started(policy) == 1
    began = nodes.now
    nodes.runs(policy, 20, began)
    nodes.names.append("b")
    nodes.runs(policy, 8, began)
    assert board.asks == [], "it rests"
    nodes.runs(policy, 4, began)
    assert set(board.asks) == {"there is room for 2 workers, 1 train"}

    nodes.names.remove("b")  # gone before it could be used
    assert nodes.started(policy) == 1
    nodes.names.append("b")
    board.asks.clear()
    began = nodes.now
    nodes.runs(policy, 55, began)
    assert board.asks == [], "twice as long"
    nodes.runs(policy, 6, began)
    assert board.asks
    assert nodes.started(policy) == 2


@pytest.mark.parametrize(("grows", "seconds"), [(False, 30), (True, 600)])
def test_too_few_end_in_a_named_error_soon_where_no_node_can_come(grows: bool, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, "a", "b")
    nodes.grows = grows
    policy, _ = policy_of((2, 4))
    while nodes.started(policy) != 2:
        pass
    nodes.runs(policy, 2)
    nodes.names.remove("b")
    began = nodes.now
    said = r"did not start within 600 s" if grows else r"hold 1 workers of \{'CPU': 1.0\}, expected 2; bring nodes back"
    with pytest.raises(DeadlineError, match=said):
        while nodes.now < began + 1000:
            assert nodes.started(policy) is None
    assert seconds <= nodes.now - began <= seconds + 1


def test_a_look_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, "a")
    policy, board = policy_of(1)
    there = elastic.cluster.get_draining_nodes

    def away() -> None:
        raise ConnectionError("the head restarts")

    monkeypatch.setattr(elastic.cluster, "get_draining_nodes", away)
    assert nodes.started(policy) is None
    monkeypatch.setattr(elastic.cluster, "get_draining_nodes", there)
    assert nodes.started(policy) == 1
    monkeypatch.setattr(elastic.cluster, "get_draining_nodes", away)
    nodes.runs(policy, 2)
    assert board.asks == []


@pytest.mark.parametrize("started", [False, True])
def test_a_worker_that_dies_while_its_group_starts_is_tried_again(started: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(self: WorkerGroup) -> None:
        raise ActorDiedError

    ended: list[str] = []
    monkeypatch.setattr(WorkerGroup, "_start", dies)
    monkeypatch.setattr(WorkerGroup, "has_started", lambda self: started)
    monkeypatch.setattr(WorkerGroup, "shutdown", lambda self: ended.append("ended"))
    with pytest.raises(WorkerGroupStartupFailedError) as caught:
        Group.__new__(Group)._start()
    assert ended == ["ended"] * started, "its places are free again"
    policy = Forgiving(FailureConfig(max_failures=0, controller_failure_limit=1))
    assert policy.make_decision(ControllerError(caught.value)) == FailureDecision.RETRY


def test_who_leaves_when_asked_has_not_failed() -> None:
    policy = Forgiving(FailureConfig(max_failures=1))
    asked = WorkerGroupError("", {0: Regroup("node b"), 1: Regroup("another rank")})
    assert [policy.make_decision(asked) for _ in range(5)] == [FailureDecision.RETRY] * 5
    failed = WorkerGroupError("", {0: OSError("broken")})
    assert [policy.make_decision(failed) for _ in range(2)] == [FailureDecision.RETRY, FailureDecision.RAISE]


def test_places_are_counted_by_the_scarcest_resource() -> None:
    nodes = {"a": {"CPU": 8.0, "GPU": 1.0}, "b": {"CPU": 0.3, "GPU": 4.0}, "c": {"CPU": 16.0}}
    assert slots_of(nodes, {"CPU": 2.0, "GPU": 0.5}) == Counter({"a": 2, "b": 0, "c": 0})
    assert slots_of({"a": {"CPU": 0.3}}, {"CPU": 0.1, "GPU": 0}) == Counter({"a": 3})


def test_a_node_answers_or_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        nodes = [
            {"NodeID": name, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": p, "Alive": alive}
            for name, p, alive in (("a", port, True), ("b", 9, True), ("c", port, False), ("d", port, True))
        ]
        assert answering(nodes, ["a", "b", "c"]) == ["a"]
    assert answering([], []) == []


def test_the_policies_travel_to_the_controller() -> None:
    policy = Elastic(ScalingConfig(num_workers=(1, 2)), None, 60)
    assert pickle.loads(pickle.dumps(policy)).scaling_config.max_workers == 2
