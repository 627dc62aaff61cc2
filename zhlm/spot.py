"""Runs on each node of a cluster: watches the cloud's notice that the machine will be taken away, and then drains its own Ray node.

    python -m zhlm.spot          or, as one file without zhlm: python spot.py

Nothing in Ray watches the clouds. Drained, a node gets no new work, and training saves at once and goes on without it.

Sources: AWS, "Spot Instance interruption notices" (two minutes) and "EC2 instance rebalance recommendations"; Google, "Spot VMs" (30 s) and
"maintenance-event"; Azure, "Scheduled Events for Linux VMs" (30 s or more).
"""

import argparse
import json
import logging
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException

from ray._private import services
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

METADATA = "http://169.254.169.254"
"""The same address on all three clouds, answered by the machine's own host."""
REQUEST_S = 2.0
TRIES = 30
"""Rounds without an answer before the machine is taken for one of no cloud. Azure's first answer may take two minutes."""
GCS_S = 10
GOOGLE_PREEMPTED_S, GOOGLE_MAINTENANCE_S = 30, 3600

log = logging.getLogger("zhlm.spot")


@dataclass(frozen=True)
class Notice:
    """The machine will be taken away."""

    why: str
    deadline: datetime | None
    """When; None: not said."""


class Metadata:
    """The metadata service of a machine."""

    def __init__(self, address: str = METADATA) -> None:
        self._address = address.rstrip("/")
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # never through a proxy

    def ask(self, path: str, headers: dict[str, str], method: str = "GET") -> str | None:
        """The answer, None where there is no such thing. Raises: OSError or HTTPException when nothing sensible answers in time."""
        request = urllib.request.Request(self._address + path, headers=headers, method=method)
        try:
            with self._open(request, timeout=REQUEST_S) as answer:
                return str(answer.read(1 << 20).decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            raise


def aws(metadata: Metadata, *, on_rebalance: bool = False) -> Notice | None:
    token = metadata.ask("/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "300"}, "PUT")
    if not token:
        raise HTTPException("no token")
    headers = {"X-aws-ec2-metadata-token": token}
    action = metadata.ask("/latest/meta-data/spot/instance-action", headers)
    if action is not None:
        said = json.loads(action)
        return Notice(f"AWS: {said['action']}", datetime.fromisoformat(said["time"]))
    if on_rebalance and metadata.ask("/latest/meta-data/events/recommendations/rebalance", headers) is not None:
        return Notice("AWS: rebalance recommended", None)
    return None


def google(metadata: Metadata) -> Notice | None:
    headers = {"Metadata-Flavor": "Google"}
    preempted = metadata.ask("/computeMetadata/v1/instance/preempted", headers)
    if preempted is None:
        raise HTTPException("not Google")
    if preempted.strip() == "TRUE":
        return Notice("Google: preempted", datetime.now(UTC) + timedelta(seconds=GOOGLE_PREEMPTED_S))
    event = (metadata.ask("/computeMetadata/v1/instance/maintenance-event", headers) or "NONE").strip()
    # A machine with a GPU cannot be moved alive, and is told an hour ahead.
    return (
        Notice(f"Google: {event}", datetime.now(UTC) + timedelta(seconds=GOOGLE_MAINTENANCE_S)) if event.startswith("TERMINATE") else None
    )


def azure(metadata: Metadata) -> Notice | None:
    headers = {"Metadata": "true"}
    name = metadata.ask("/metadata/instance/compute/name?api-version=2021-02-01&format=text", headers)
    events = metadata.ask("/metadata/scheduledevents?api-version=2020-07-01", headers)
    if name is None or events is None:
        raise HTTPException("not Azure")
    for event in json.loads(events)["Events"]:  # of all machines of a scale set
        if event["EventType"] in ("Preempt", "Terminate") and name.strip() in event["Resources"]:
            deadline = parsedate_to_datetime(event["NotBefore"]) if event.get("NotBefore") else None
            return Notice(f"Azure: {event['EventType']}", deadline)
    return None


Cloud = Callable[[Metadata], Notice | None]


def find_cloud(metadata: Metadata, clouds: Sequence[Cloud], every_s: float) -> Cloud | None:
    """The cloud that answers as one does; None when none did for some rounds."""
    for again in range(TRIES):
        time.sleep(every_s if again else 0)
        for cloud in clouds:
            try:
                cloud(metadata)
            except (OSError, HTTPException, ValueError, KeyError):
                continue
            return cloud
    return None


def wait_for_notice(metadata: Metadata, cloud: Cloud, every_s: float) -> Notice:
    while True:
        try:
            notice = cloud(metadata)
        except (OSError, HTTPException, ValueError, KeyError) as error:
            log.info("no answer from the metadata service: %s", error)
            notice = None
        if notice is not None:
            return notice
        time.sleep(every_s)


def drain(notice: Notice, address: str, node_id: str | None) -> None:
    """Tell Ray; what `ray drain-node` does. Raises: RuntimeError when Ray refuses; whatever its client raises when it is out of reach."""
    gcs = GcsClient(address=services.canonicalize_bootstrap_address_or_die(address))
    if node_id is None:
        own = services.get_node_ip_address()
        nodes = gcs.get_all_node_info(timeout=GCS_S)
        node_id = next((i.hex() for i, n in nodes.items() if n.node_manager_address == own and not n.state), None)  # 0: alive
        if node_id is None:
            raise LookupError(f"no living Ray node has this machine's address {own}")
    deadline_ms = int(notice.deadline.timestamp() * 1000) if notice.deadline else 0
    accepted, reason = gcs.drain_node(node_id, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, notice.why, deadline_ms)
    if not accepted:
        raise LookupError(f"Ray does not drain node {node_id}: {reason}")
    log.warning("%s, until %s: node %s is drained", notice.why, notice.deadline or "any time", node_id)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the node is drained, or when this machine belongs to no cloud."""
    parser = argparse.ArgumentParser(prog="python -m zhlm.spot", description="Drain this Ray node when its cloud takes the machine away.")
    parser.add_argument("--address", default="auto", metavar="HOST:PORT", help="the cluster's head (the one that this machine belongs to)")
    parser.add_argument("--node-id", metavar="HEX", help="the Ray node to drain (the one with this machine's address)")
    parser.add_argument("--metadata", default=METADATA, metavar="URL", help=f"the cloud's metadata service ({METADATA})")
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between two looks (5)")
    parser.add_argument("--on-rebalance", action="store_true", help="also when AWS only recommends to leave; it may never take the machine")
    options = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")

    def aws_of_options(metadata: Metadata) -> Notice | None:
        return aws(metadata, on_rebalance=options.on_rebalance)

    metadata = Metadata(options.metadata)
    cloud = find_cloud(metadata, (aws_of_options, google, azure), options.every)
    if cloud is None:
        log.info("no cloud's metadata service at %s: nothing to watch", options.metadata)
        return 0
    notice = wait_for_notice(metadata, cloud, options.every)
    while True:
        try:
            drain(notice, options.address, options.node_id)
            return 0
        except Exception as error:  # the head may be away for a moment, and the notice stays
            log.warning("%s, but the node could not be drained, trying again: %s", notice.why, error)
        time.sleep(options.every)


if __name__ == "__main__":
    sys.exit(main())
