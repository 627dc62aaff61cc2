"""Send a run to a cluster through Ray's job API, follow its log, list and stop jobs.

Addresses are those of the cluster's dashboard, http://127.0.0.1:8265 through the tunnel that `ray dashboard cluster.yaml` opens.
"""

import asyncio
import functools
import logging
import os
import secrets
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from zhlm.config.load import load_config
from zhlm.errors import ClusterError, ConfigError
from zhlm.submit.package import check_package

PROBE_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 60.0
"""For one answer of the job server; an upload may take longer as long as bytes move."""
QUIET_S = 30.0
"""So long without a log line, then the job's status is asked for."""
RECONNECT_S = 120.0
"""How long a broken log connection is tried again."""
STOP_TIMEOUT_S = 60.0
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
"""Loggers that report each ignore file and each closed connection."""
TOKEN_FILE = Path.home() / ".ray" / "auth_token"


def submit(file: str, overrides: Sequence[str], address: str, *, entrypoint: str | None = None) -> int:
    """Send the current folder and run the config on the cluster; follows the log. Returns the job's exit code, 130 when interrupted.

    Raises: ConfigError for a wrong config or one outside of the folder, ClusterError when the cluster refuses.
    """
    config = load_config(file, overrides)
    folder = Path.cwd()
    inside = _path_inside(Path(file), folder)
    client = _connect(address)
    package = check_package(folder, inside)
    command = entrypoint or entrypoint_of(inside, overrides)
    job_id = new_job_id(config.name)
    print(f"sending {len(package.files)} files, {package.size_bytes / 2**20:.1f} MiB, to {address}", flush=True)
    with _cluster_errors(address):
        client.submit_job(
            entrypoint=command,
            submission_id=job_id,
            runtime_env={"working_dir": str(folder), "env_vars": {"PYTHONUNBUFFERED": "1"}},
            metadata={"zhlm_config": inside},
        )
    print(f"job {job_id} is sent; its log follows (Ctrl-C asks whether to stop it)", flush=True)
    return _follow_or_leave(client, job_id, address)


def entrypoint_of(config_file: str, overrides: Sequence[str]) -> str:
    """The shell command the job runs."""
    sets = [part for override in overrides for part in ("--set", override)]
    return shlex.join(["python", "-m", "ray_jobs.pipeline", "--config", config_file, *sets])


def new_job_id(name: str) -> str:
    """Readable and unique: name, minute, four random characters, as in sample-20261120-1830-x7f2."""
    tail = "".join(secrets.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(4))
    return f"{name}-{datetime.now():%Y%m%d-%H%M}-{tail}"


def list_jobs(address: str) -> str:
    """A table of the cluster's submitted jobs, the newest last."""
    client = _connect(address)
    with _cluster_errors(address):
        jobs = [j for j in client.list_jobs() if j.submission_id]
    if not jobs:
        return f"no jobs at {address}"
    rows = [("job", "status", "started", "minutes")]
    for job in sorted(jobs, key=lambda j: j.start_time or 0):
        started = job.start_time or 0
        ended = job.end_time or time.time() * 1000
        when = f"{datetime.fromtimestamp(started / 1000):%Y-%m-%d %H:%M}" if started else "-"
        rows.append((job.submission_id, str(job.status), when, f"{(ended - started) / 60_000:.1f}" if started else "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def show_log(job_id: str, address: str, *, follow: bool) -> int:
    """Print a job's log so far, or follow it to the end. Returns 0, or when followed the job's exit code."""
    client = _connect(address)
    with _cluster_errors(address, job_id):
        client.get_job_info(job_id)
        if not follow:
            print(client.get_job_logs(job_id), end="", flush=True)
            return 0
    return _follow_or_leave(client, job_id, address)


def stop(job_id: str, address: str) -> int:
    """Stop a job and wait until it is over. Returns 0; stopping a job that has ended changes nothing.

    Raises: ClusterError when it does not end in time.
    """
    client = _connect(address)
    with _cluster_errors(address, job_id):
        was_running = client.stop_job(job_id)
        status = _wait_for_end(client, job_id) if was_running else client.get_job_status(job_id)
    print(f"job {job_id}: {status}" if was_running else f"job {job_id} had already ended: {status}")
    return 0


def _wait_for_end(client: Any, job_id: str) -> str:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not (status := client.get_job_status(job_id)).is_terminal():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"cluster: job {job_id} is still {status} {STOP_TIMEOUT_S:.0f} s after it was told to stop; try `zhlm stop` again"
            )
        time.sleep(0.5)
    return str(status)


def _path_inside(file: Path, folder: Path) -> str:
    try:
        return file.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        raise ConfigError(
            f"submit: {file} is not inside the current folder {folder}, which the job gets; copy it here or call zhlm from its project"
        ) from None


def _connect(address: str) -> Any:
    """A job client for an address that answers, within seconds either way."""
    address = address.rstrip("/") if "://" in address else f"http://{address.rstrip('/')}"
    if not address.startswith(("http://", "https://")):
        raise ClusterError(f"cluster: address {address} is not a dashboard's; expected one like http://127.0.0.1:8265; change --address")
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        pass  # it answers; whether it lets us in, the client finds out
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"cluster: {address} does not answer ({getattr(error, 'reason', error)}); "
            "start the cluster, open its tunnel with `ray dashboard cluster.yaml`, or correct --address"
        ) from error
    _use_token()
    with _cluster_errors(address), _address_from_caller(address):
        from ray.job_submission import JobSubmissionClient

        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        client = JobSubmissionClient(address)
    # Ray passes further arguments on to requests, which by itself waits for ever.
    client._do_request = functools.partial(client._do_request, timeout=REQUEST_TIMEOUT_S)
    return client


def _use_token() -> None:
    """As `ray start` does: where a token is at hand and no mode was chosen, use it. Ray reads the mode when it is first imported."""
    at_hand = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE.exists()
    if at_hand and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"


@contextmanager
def _address_from_caller(address: str) -> Iterator[None]:
    """Ray lets RAY_API_SERVER_ADDRESS and RAY_ADDRESS win over its argument; here what the user typed wins."""
    key = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(key)
    os.environ[key] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


@contextmanager
def _cluster_errors(address: str, job_id: str | None = None) -> Iterator[None]:
    """Turns what the job client raises into one line."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(
            f"cluster: {address} refused the token ({_first_line(error)}); set RAY_AUTH_MODE=token and put the cluster's token into "
            f"{TOKEN_FILE} (`ray get-auth-token` prints it on the head node)"
        ) from error
    except (OSError, RuntimeError) as error:
        if job_id is not None and "status code 404" in str(error):
            raise ClusterError(f"cluster: {address} knows no job {job_id}; `zhlm jobs` lists them") from error
        raise ClusterError(
            f"cluster: {address} failed ({_first_line(error)}); check that it runs the same Ray as here, and try again"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")


def _follow_or_leave(client: Any, job_id: str, address: str) -> int:
    try:
        asyncio.run(_print_log(client, job_id, address))
    except KeyboardInterrupt:
        return _interrupted(client, job_id, address)
    with _cluster_errors(address, job_id):
        info = client.get_job_info(job_id)
    if str(info.status) == "SUCCEEDED":
        return 0
    reason = (info.message or "no reason given").partition(", last available logs")[0]  # those were printed already
    print(f"job {job_id} {info.status}: {_first_line(Exception(reason))}", file=sys.stderr)
    code = info.driver_exit_code
    return code if isinstance(code, int) and 0 < code < 256 else 1


def _interrupted(client: Any, job_id: str, address: str) -> int:
    answer = ""
    if sys.stdin.isatty():
        try:
            answer = input("\nstop the job? [y/N] ")
        except (KeyboardInterrupt, EOFError):
            print()
    if answer.strip().lower() in ("y", "yes"):
        with _cluster_errors(address, job_id):
            client.stop_job(job_id)
            print(f"job {job_id}: {_wait_for_end(client, job_id)}")
    else:
        at = f"{job_id} --address {address}"
        print(f"job {job_id} goes on; see it with `zhlm logs {at} --follow`, stop it with `zhlm stop {at}`")
    return 130


async def _print_log(client: Any, job_id: str, address: str) -> None:
    """Print a job's log until the job ends; a broken connection is opened again and goes on where it was."""
    printed = 0
    last_contact_s = time.monotonic()
    while True:
        position = 0  # Ray sends the log from its start each time
        broken: Exception | None = None
        try:
            async for text in _with_status(client, job_id):
                last_contact_s = time.monotonic()
                fresh = text[max(0, printed - position) :]
                position += len(text)
                printed = max(printed, position)
                print(fresh, end="", flush=True)
        except (OSError, RuntimeError) as error:
            broken = error
        if broken is None or await _has_ended(client, job_id):
            return
        if time.monotonic() - last_contact_s > RECONNECT_S:
            raise ClusterError(
                f"cluster: the log of {job_id} is out of reach ({_first_line(broken)}) for {RECONNECT_S:.0f} s; "
                f"the job may go on: see `zhlm logs {job_id} --address {address} --follow`"
            ) from broken
        await asyncio.sleep(2)


async def _with_status(client: Any, job_id: str) -> Any:
    """The log's pieces; when none comes for a while, says what the job waits for, and ends with the job."""
    import aiohttp

    pieces = client.tail_job_logs(job_id)
    waiting: asyncio.Task[Any] | None = None
    ended = False
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(pieces))
            done, _ = await asyncio.wait({waiting}, timeout=QUIET_S)
            if done:
                task, waiting = waiting, None
                yield task.result()
                continue
            if ended:
                return
            info = await asyncio.to_thread(client.get_job_info, job_id)
            ended = info.status.is_terminal()
            if str(info.status) == "PENDING":
                print(f"job {job_id} is waiting: {_first_line(Exception(info.message or 'not started yet'))}", file=sys.stderr, flush=True)
    except StopAsyncIteration:
        return
    except aiohttp.ClientError as error:
        raise ConnectionError(str(error)) from error
    finally:
        if waiting is not None:
            waiting.cancel()


async def _has_ended(client: Any, job_id: str) -> bool:
    try:
        return bool((await asyncio.to_thread(client.get_job_status, job_id)).is_terminal())
    except (OSError, RuntimeError):
        return False  # out of reach for now; the caller keeps the time
