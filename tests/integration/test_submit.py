"""zhlm submit, jobs, logs and stop against a real Ray head of its own, with token authentication on."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.timeout(240)

CONFIG = """\
name: tiny
base: {model: base}
streams: [{name: zh, role: new, paths: [zh.txt]}]
train: {steps: 1}
"""
JOBS = {
    "count.py": "import time\nfor i in range(3):\n    print(f'\u7b2c {i}', flush=True)\n    time.sleep(1.5)\n",
    "mistake.py": "import sys\nprint('zhlm: pack: wrong')\nsys.exit(2)\n",
    "sleep.py": "import time\nprint('asleep', flush=True)\ntime.sleep(200)\n",
}
SUBMIT = "import sys; from zhlm.submit.jobs import submit; sys.exit(submit(sys.argv[1], [], sys.argv[2], entrypoint=sys.argv[3]))"
CLI = "import sys; from zhlm.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Head:
    address: str
    environment: dict[str, str]
    project: Path

    def start(self, *arguments: str, config: str = "run.yaml", **options: object) -> "subprocess.Popen[str]":
        code = SUBMIT if arguments[0] == "submit" else CLI
        rest = [config, self.address, *arguments[1:]] if arguments[0] == "submit" else [*arguments, "--address", self.address]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([sys.executable, "-c", code, *rest], cwd=self.project, env=self.environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    def call(
        self, *arguments: str, environment: dict[str, str] | None = None, config: str = "run.yaml"
    ) -> "subprocess.CompletedProcess[str]":
        head = Head(self.address, environment or self.environment, self.project)
        with head.start(*arguments, config=config) as process:
            out, err = process.communicate(timeout=90)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    project = tmp_path_factory.mktemp("project")
    (project / "run.yaml").write_text(CONFIG)
    for name, code in JOBS.items():
        (project / name).write_text(code, encoding="utf-8")
    token = project.parent / "token"
    token.write_text("a" * 40)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k.startswith("RAY_TRAIN_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # a job's `python` is the one the head finds
    gcs, dashboard, client, agent = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="zr", ignore_cleanup_errors=True) as folder:
        ports = [
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
        ]
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}", *ports]
        with open(project.parent / "head.log", "w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            wait_for_port(dashboard, process)
            yield Head(f"http://127.0.0.1:{dashboard}", environment, project)
        finally:
            end(process.pid)
            process.wait(timeout=30)


def wait_for_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, "ray start ended; see head.log"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the dashboard did not listen within 90 s")


def end(pid: int) -> None:
    """The processes of this head, and only those."""
    top = psutil.Process(pid)
    processes = [top, *top.children(recursive=True)]
    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=2)  # some of Ray's never do by themselves
    for process in alive:
        process.kill()


def job_id_of(text: str) -> str:
    found = re.search(r"job (tiny-\d{8}-\d{4}-\w{4}) is sent", text)
    assert found, text
    return found[1]


def test_log_is_followed_while_the_job_runs(head: Head) -> None:
    with head.start("submit", "python count.py") as process:
        assert process.stdout is not None
        seen = {line.strip(): time.monotonic() for line in process.stdout}
    assert process.returncode == 0
    assert [s for s in seen if s.startswith("\u7b2c")] == ["\u7b2c 0", "\u7b2c 1", "\u7b2c 2"]
    assert seen["\u7b2c 2"] - seen["\u7b2c 0"] > 1, "lines must come one by one, not at the end"


def test_exit_code_jobs_and_logs(head: Head) -> None:
    result = head.call("submit", "python mistake.py")
    assert result.returncode == 2, result
    assert re.fullmatch(r"job tiny-\S+ FAILED: Job entrypoint command failed with exit code 2\n", result.stderr)
    job = job_id_of(result.stdout)
    table = head.call("jobs")
    assert table.returncode == 0
    assert re.search(rf"{job}\s+FAILED\s+20", table.stdout), table
    assert "zhlm: pack: wrong" in head.call("logs", job).stdout
    assert head.call("logs", job, "--follow").returncode == 2
    again = head.call("stop", job)
    assert again.returncode == 0 and "had already ended: FAILED" in again.stdout


def test_this_project_runs_as_a_job(head: Head) -> None:
    here = Head(head.address, head.environment, Path(__file__).parents[2])
    result = here.call("submit", "python -m ray_jobs.pipeline --config configs/sample.yaml --dry-run", config="configs/sample.yaml")
    assert result.returncode == 0, result
    assert "plan of sample" in result.stdout and "trainable" in result.stdout


SMALL = {
    "sample.corpus.documents": 600,
    "sample.corpus.held_out_documents": 40,
    "sample.base.steps": 20,
    "sample.base.layers": 2,
    "sample.base.width": 64,
    "vocab.add_rows": 64,
    "pack.block_tokens": 128,
    "train.steps": 6,
    "resources.workers": 1,
    "evaluate.documents": 10,
}


def test_plain_ray_job_submit_runs_the_whole_pipeline(head: Head, tmp_path: Path) -> None:
    sets = [part for name, value in (SMALL | {"storage.root": tmp_path}).items() for part in ("--set", f"{name}={value}")]
    job = ["python", "-m", "ray_jobs.pipeline", "--config", "configs/sample.yaml", *sets]
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--address", head.address, "--working-dir", ".", "--", *job]
    project = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=project, env=head.environment, capture_output=True, text=True, timeout=220)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "evaluate  done in" in done.stdout and "serve it" in done.stdout
    results = json.loads((tmp_path / "sample" / "evaluate" / "results.json").read_text(encoding="utf-8"))
    assert results["adapted"]["zh"]["documents"] == 10


def test_interrupt_without_terminal_leaves_the_job_and_stop_ends_it(head: Head) -> None:
    with head.start("submit", "python sleep.py") as process:
        assert process.stdout is not None
        job = job_id_of(read_until(process.stdout.fileno(), "asleep"))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, (out, err)
    assert f"stop it with `zhlm stop {job} --address {head.address}`" in out
    assert re.search(rf"{job}\s+RUNNING", head.call("jobs").stdout)
    stopped = head.call("stop", job)
    assert stopped.returncode == 0 and f"job {job}: STOPPED" in stopped.stdout, stopped
    assert head.call("logs", job, "--follow").returncode == 1


def test_interrupt_at_a_terminal_asks(head: Head) -> None:
    ours, theirs = pty.openpty()
    process = head.start("submit", "python sleep.py", stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    job = job_id_of(read_until(ours, "asleep"))
    process.send_signal(signal.SIGINT)
    read_until(ours, "stop the job? [y/N]")
    os.write(ours, b"y\n")
    read_until(ours, f"job {job}: STOPPED")
    assert process.wait(timeout=30) == 130
    os.close(ours)


@pytest.mark.parametrize("change", [{"RAY_AUTH_TOKEN": "b" * 40}, {"RAY_AUTH_MODE": "disabled"}], ids=["wrong token", "no token"])
def test_refused_token_is_one_line(head: Head, change: dict[str, str]) -> None:
    result = head.call("jobs", environment=head.environment | change)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "refused the token" in result.stderr and "RAY_AUTH_MODE=token" in result.stderr and "ray get-auth-token" in result.stderr


def test_unknown_job_is_one_line(head: Head) -> None:
    for verb in ("logs", "stop"):
        result = head.call(verb, "nobody")
        assert result.returncode == 2
        assert result.stderr.startswith("zhlm: cluster: ") and "knows no job nobody" in result.stderr, result.stderr


def read_until(descriptor: int, text: str, timeout_s: float = 90) -> str:
    deadline, seen = time.monotonic() + timeout_s, b""
    while text.encode() not in seen:
        ready, _, _ = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{text!r} did not come; there was {seen.decode()!r}"
        seen += os.read(descriptor, 65536)
    return seen.decode()
