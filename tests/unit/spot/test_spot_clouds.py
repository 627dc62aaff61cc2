"""The notice of each cloud, from a server on loopback that answers as the cloud's does."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from metadata_service import MetadataService
from zhlm import spot
from zhlm.spot import Metadata, Notice, aws, azure, google

SCHEDULED = "/metadata/scheduledevents?api-version=2020-07-01"
NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
TOKEN = ("X-aws-ec2-metadata-token", "secret")


@pytest.fixture
def machine() -> Iterator[MetadataService]:
    machine = MetadataService()
    yield machine
    machine.close()


def on_aws(machine: MetadataService) -> Metadata:
    machine.header = TOKEN
    machine.answers = {"PUT /latest/api/token": "secret"}
    return Metadata(machine.address)


def on_google(machine: MetadataService) -> Metadata:
    machine.header = ("Metadata-Flavor", "Google")
    at = "GET /computeMetadata/v1/instance/"
    machine.answers = {at + "preempted": "FALSE", at + "maintenance-event": "NONE"}
    return Metadata(machine.address)


def on_azure(machine: MetadataService) -> Metadata:
    machine.header = ("Metadata", "true")
    machine.answers = {"GET " + NAME: "gpu_7", "GET " + SCHEDULED: '{"DocumentIncarnation": 1, "Events": []}'}
    return Metadata(machine.address)


def test_aws_gives_two_minutes_and_wants_a_token(machine: MetadataService) -> None:
    metadata = on_aws(machine)
    assert aws(metadata) is None
    machine.answers["GET /latest/meta-data/events/recommendations/rebalance"] = '{"noticeTime": "2026-01-01T08:00:00Z"}'
    assert aws(metadata) is None, "only a recommendation"
    assert aws(metadata, on_rebalance=True) == Notice("AWS: rebalance recommended", None)
    machine.answers["GET /latest/meta-data/spot/instance-action"] = '{"action": "terminate", "time": "2026-01-01T08:22:00Z"}'
    assert aws(metadata) == Notice("AWS: terminate", datetime(2026, 1, 1, 8, 22, tzinfo=UTC))


def test_google_says_preempted_or_the_end_of_a_machine_with_a_gpu(machine: MetadataService) -> None:
    metadata = on_google(machine)
    assert google(metadata) is None
    at, now = "GET /computeMetadata/v1/instance/", datetime.now(UTC)
    machine.answers[at + "maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"
    assert google(metadata) is None, "moved alive"
    machine.answers[at + "maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    notice = google(metadata)
    assert notice and notice.why == "Google: TERMINATE_ON_HOST_MAINTENANCE"
    machine.answers[at + "preempted"] = "TRUE\n"
    notice = google(metadata)
    assert notice and notice.why == "Google: preempted" and notice.deadline and timedelta(0) < notice.deadline - now < timedelta(seconds=60)


def event(kind: str, resources: list[str], not_before: str) -> str:
    one = {"EventId": "1", "EventType": kind, "ResourceType": "VirtualMachine", "Resources": resources, "EventStatus": "Scheduled"}
    return json.dumps({"DocumentIncarnation": 2, "Events": [one | {"NotBefore": not_before}]})


def test_azure_tells_of_all_machines_of_a_set(machine: MetadataService) -> None:
    metadata, when = on_azure(machine), "Mon, 19 Sep 2026 18:29:47 GMT"
    assert azure(metadata) is None
    for kind, resources in (("Preempt", ["gpu_8"]), ("Reboot", ["gpu_7"])):
        machine.answers["GET " + SCHEDULED] = event(kind, resources, when)
        assert azure(metadata) is None
    machine.answers["GET " + SCHEDULED] = event("Preempt", ["gpu_8", "gpu_7"], when)
    assert azure(metadata) == Notice("Azure: Preempt", datetime(2026, 9, 19, 18, 29, 47, tzinfo=UTC))
    machine.answers["GET " + SCHEDULED] = event("Terminate", ["gpu_7"], "")  # it has begun
    assert azure(metadata) == Notice("Azure: Terminate", None)


@pytest.mark.parametrize("prepare", [on_aws, on_google, on_azure])
def test_each_cloud_is_known_by_its_answers(machine: MetadataService, prepare: object) -> None:
    metadata = prepare(machine)  # type: ignore[operator]
    expected = {"on_aws": aws, "on_google": google, "on_azure": azure}[prepare.__name__]  # type: ignore[attr-defined]
    assert spot.find_cloud(metadata, (aws, google, azure), 0.01) is expected


def test_where_there_is_no_cloud_the_agent_ends(machine: MetadataService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot, "drain", lambda *_: pytest.fail("drained"))
    assert spot.main(["--metadata", machine.address, "--every", "0.01"]) == 0
    assert len(machine.asked) >= spot.TRIES, "a service that is late is waited for"
    assert spot.main(["--metadata", "http://127.0.0.1:9", "--every", "0.01"]) == 0


def test_a_notice_drains_the_node_even_if_ray_or_the_service_is_away(machine: MetadataService, monkeypatch: pytest.MonkeyPatch) -> None:
    on_aws(machine)
    drained: list[tuple[Notice, str, str | None]] = []
    looks = 0

    def ask(self: Metadata, *args: object) -> str | None:
        nonlocal looks
        looks += 1
        if looks == 5:
            raise TimeoutError("timed out")
        if looks == 8:
            machine.answers["GET /latest/meta-data/spot/instance-action"] = '{"action": "stop", "time": "2026-01-01T08:22:00Z"}'
        return whole(self, *args)  # type: ignore[arg-type]

    def drain(notice: Notice, address: str, node_id: str | None) -> None:
        drained.append((notice, address, node_id))
        if len(drained) < 3:
            raise ConnectionError("the head is away")

    whole = Metadata.ask
    monkeypatch.setattr(Metadata, "ask", ask)
    monkeypatch.setattr(spot, "drain", drain)
    assert spot.main(["--metadata", machine.address, "--every", "0.01", "--address", "10.0.0.1:6379", "--node-id", "ab"]) == 0
    assert drained == [(Notice("AWS: stop", datetime(2026, 1, 1, 8, 22, tzinfo=UTC)), "10.0.0.1:6379", "ab")] * 3
