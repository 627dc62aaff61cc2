"""One process at a time: on this machine by a lock, between machines by claims in the store, which moto plays, or on a disk they share."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from conftest import s3_account
from zhlm import claim
from zhlm.claim import locked
from zhlm.errors import RunError
from zhlm.storage import Place, Run


class Machines:
    """Machines differ by their home folder, their name and their kernel."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
        self._folder, self._monkeypatch, self.run = folder, monkeypatch, run

    @contextmanager
    def on(self, name: str, told: list[str] | None = None) -> Iterator[None]:
        """This process works on the run, on the named machine."""
        self._monkeypatch.setenv("HOME", str(self._folder / name))
        self._monkeypatch.setattr(socket, "gethostname", lambda: name)
        self._monkeypatch.setattr(claim, "machine", lambda: f"{name} booted")
        with locked(self.run, (told if told is not None else []).append):
            yield

    def claims(self) -> dict[str, str]:
        folder = self.run.folder / "claims"
        told = [json.loads((folder / name).read_text()) for name in folder.names()]
        return {c["host"]: c["state"] for c in told}


@pytest.fixture
def machines(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    import boto3

    for name, value in s3_account(s3_server).items():
        monkeypatch.setenv(name, value)
    bucket = f"b{time.time_ns()}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    monkeypatch.setattr(claim, "BEAT_S", 0.2)
    monkeypatch.setattr(claim, "SILENCE_S", 2.0)
    return Machines(tmp_path, monkeypatch, Run(Place(f"s3://{bucket}/runs/tiny")))


def until(what: str, true: object) -> None:
    for _ in range(200):
        if true():  # type: ignore[operator]
            return
        time.sleep(0.05)
    pytest.fail(f"never: {what}")


def test_a_second_machine_is_refused_in_one_line_while_the_first_lives(machines: Machines) -> None:
    with machines.on("one"):
        time.sleep(3.2)  # longer than a dead one would be waited for
        with pytest.raises(RunError) as caught, machines.on("two"):
            pytest.fail("both work on the run")
        assert machines.claims() == {"one": "works"}, "what was refused leaves nothing"
    said = str(caught.value)
    assert said.startswith(f"run: one (process {os.getpid()}) works on {machines.run.folder} since 20") and "\n" not in said
    assert said.endswith("UTC; wait for it, stop it, or choose another name")
    assert machines.claims() == {}
    with machines.on("two"):
        assert machines.claims() == {"two": "works"}
    assert not [t for t in threading.enumerate() if t.name == "zhlm-claim"]


DIES = """
import os, sys
from zhlm import claim
from zhlm.claim import locked
claim.BEAT_S = 0.4
claim.machine = lambda: os.environ["MACHINE"] + " booted"
from zhlm.storage import Place, Run
with locked(Run(Place(sys.argv[1]))):
    os._exit(9)
"""


def die_on(machines: Machines, name: str) -> None:
    """A process that works on the run there is killed."""
    environment = os.environ | {"HOME": str(machines._folder / name), "MACHINE": name}
    ran = subprocess.run([sys.executable, "-c", DIES, str(machines.run.folder)], env=environment, timeout=60)
    assert ran.returncode == 9


def test_the_claim_of_a_dead_machine_is_waited_for_until_it_lets_go(machines: Machines) -> None:
    """As a job that is tried again on a new head does."""
    die_on(machines, "one")
    started_s, told = time.monotonic(), list[str]()
    with machines.on("two", told):
        assert machines.claims() == {"two": "works"}
        assert 1 < time.monotonic() - started_s < 10, "S3 counts in seconds"
    assert len(told) == 1 and told[0].startswith("run: waits for ") and "lets go within 2 s" in told[0]


def test_on_the_same_machine_the_next_process_need_not_wait(machines: Machines) -> None:
    die_on(machines, "one")
    assert len((machines.run.folder / "claims").names()) == 1
    with machines.on("one"):
        assert machines.claims() == {"one": "works"}


def test_on_one_machine_the_lock_decides(machines: Machines) -> None:
    with (
        machines.on("one"),
        pytest.raises(RunError, match=r"run: another process works on s3://.*; wait for it, stop it, or choose another name"),
        machines.on("one"),
    ):
        pass


@pytest.mark.parametrize("how", ["its claim is deleted", "another works too"])
def test_who_was_taken_for_dead_and_lives_ends(machines: Machines, how: str) -> None:
    folder = machines.run.folder / "claims"
    other = json.dumps({"host": "two", "process": 5, "since": "2026-01-01", "state": "works"})
    said = r"run: (two \(process 5\)|another process) took s3://.* over while this process was out of reach"
    with pytest.raises(RunError, match=said), machines.on("one"):
        if how == "another works too":
            (folder / "ff.json").write_text(other)
        else:
            (folder / folder.names()[0]).delete()
        time.sleep(60)
    assert folder.names() == (["ff.json"] if how == "another works too" else [])


def test_who_only_asks_disturbs_nobody(machines: Machines) -> None:
    asks = json.dumps({"host": "two", "process": 5, "since": "2026-01-01", "state": "asks"})
    with machines.on("one"):
        (machines.run.folder / "claims" / "ff.json").write_text(asks)
        time.sleep(1)
    with machines.on("one"):
        assert machines.claims() == {"one": "works"}, "of one that died while it asked nothing is left either"


def test_of_many_that_come_at_once_never_two_work(machines: Machines) -> None:
    """And one does."""
    code = DIES.replace("    os._exit(9)", "    import time; print(time.time(), flush=True); time.sleep(1); print(time.time(), flush=True)")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(machines.run.folder)],
            env=os.environ | {"HOME": str(machines._folder / f"m{n}"), "MACHINE": f"m{n}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for n in range(4)
    ]
    spans = sorted([float(line) for line in p.communicate(timeout=60)[0].split()] for p in processes)
    at_work = [span for span in spans if span]
    assert at_work and all(before[1] <= after[0] for before, after in pairwise(at_work)) and machines.claims() == {}


def test_an_interrupt_stays_an_interrupt(machines: Machines) -> None:
    with pytest.raises(KeyboardInterrupt), machines.on("one"):
        signal.raise_signal(signal.SIGINT)
    assert machines.claims() == {}


def test_a_storage_that_is_away_for_a_moment_costs_nothing(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    from zhlm import storage

    monkeypatch.setattr(storage, "RETRY_S", 0.2)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    there = os.environ["AWS_ENDPOINT_URL"]
    with machines.on("one"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        time.sleep(1)
        monkeypatch.setenv("AWS_ENDPOINT_URL", there)
        until("a sign of life", lambda: machines.claims() == {"one": "works"})


def test_on_a_local_disk_the_lock_decides_too(tmp_path: Path) -> None:
    run = Run(Place(tmp_path / "runs" / "tiny"))
    with locked(run), pytest.raises(RunError, match="another process works on"), locked(run):
        pass
    with locked(run):
        assert len((run.folder / "claims").names()) == 1
    assert (run.folder / "claims").names() == []


# ---- a disk that machines share, whose locks are of each machine alone


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # every call is another machine's
    monkeypatch.setattr(claim, "BEAT_S", 0.1)
    monkeypatch.setattr(claim, "SILENCE_S", 1.0)
    return Machines(tmp_path, monkeypatch, Run(Place(tmp_path / "shared" / "tiny")))


def test_a_shared_disk_keeps_two_machines_apart(shared: Machines) -> None:
    with shared.on("one"):
        time.sleep(1.3)  # longer than a dead one would be waited for
        said = rf"^run: one \(process {os.getpid()}\) works on /.*/tiny since 20.* UTC; wait for it"
        with pytest.raises(RunError, match=said), shared.on("two"):
            pytest.fail("both work on the run")
        assert shared.claims() == {"one": "works"}
    with shared.on("two"):
        assert shared.claims() == {"two": "works"}


def test_on_a_shared_disk_a_dead_machine_is_waited_for_and_a_dead_process_of_this_one_is_not(shared: Machines) -> None:
    die_on(shared, "one")
    started_s = time.monotonic()
    with shared.on("one"):
        assert shared.claims() == {"one": "works"} and time.monotonic() - started_s < 0.5
    die_on(shared, "one")
    told: list[str] = []
    with shared.on("two", told):
        assert shared.claims() == {"two": "works"} and len(told) == 1
    assert time.monotonic() - started_s > claim.SILENCE_S


def test_a_disk_without_locks_is_claimed_all_the_same(shared: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with shared.on("one"), pytest.raises(RunError, match=r"one \(process \d+\) works on"), shared.on("one"):
        pass
    assert shared.claims() == {}


def test_a_machine_is_told_from_others_of_its_name_and_from_itself_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BOOT_ID", tmp_path / "boot_id")
    names = {claim.machine()}
    for boot in ("a\n", "b\n"):
        claim.BOOT_ID.write_text(boot, encoding="utf-8")
        names.add(claim.machine())
    assert len(names) == 3 and all(name.startswith(f"{socket.gethostname()} ") for name in names)
