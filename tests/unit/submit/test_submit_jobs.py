"""What submit does before and around Ray: the command, the package, addresses that do not answer."""

import logging
import os
import re
import shlex
import socket
import time
import zipfile
from pathlib import Path

import pytest

from zhlm.errors import ClusterError, ConfigError
from zhlm.submit import jobs
from zhlm.submit.package import check_package, measure

CONFIG = "name: tiny\nbase: {model: base}\nstreams: [{name: zh, role: new, paths: [zh.txt]}]\ntrain: {steps: 1}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "run.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_entrypoint_is_quoted_for_the_shell() -> None:
    command = jobs.entrypoint_of("configs/my run.yaml", ["train.steps=5", "evaluate.prompts=['\u4eca\u5929; rm -r /']"])
    assert shlex.split(command) == [
        "python", "-m", "ray_jobs.pipeline", "--config", "configs/my run.yaml",
        "--set", "train.steps=5", "--set", "evaluate.prompts=['\u4eca\u5929; rm -r /']",
    ]  # fmt: skip


def test_job_ids_are_readable_and_differ() -> None:
    ids = {jobs.new_job_id("sample") for _ in range(50)}
    assert len(ids) > 45
    pattern = re.compile(r"sample-20\d{6}-\d{4}-[a-z0-9]{4}")
    assert all(pattern.fullmatch(i) for i in ids)


def test_address_that_nobody_listens_on(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"http://127.0.0.1:{port}", f"127.0.0.1:{port}/"):
        with pytest.raises(ClusterError, match=rf"http://127.0.0.1:{port} does not answer .*ray dashboard cluster.yaml"):
            jobs.list_jobs(address)


def test_address_that_accepts_and_is_silent(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PROBE_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(ClusterError, match=r"does not answer .*timed out"):
            jobs.submit("configs/run.yaml", [], f"http://127.0.0.1:{server.getsockname()[1]}")
    assert time.monotonic() - started < 5


def test_address_of_another_kind(project: Path) -> None:
    with pytest.raises(ClusterError, match="ray://head:10001 is not a dashboard's"):
        jobs.list_jobs("ray://head:10001")


def test_config_outside_of_the_folder(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("elsewhere") / "run.yaml"
    outside.write_text(CONFIG)
    with pytest.raises(ConfigError, match=r"run\.yaml is not inside the current folder"):
        jobs.submit(str(outside), [], "http://127.0.0.1:1")


def fill(project: Path) -> None:
    for name in (
        ".git/x",
        ".venv/lib/y",
        "runs/a.bin",
        "corpus/big.txt",
        "corpus/keep.md",
        "sub/deep/__pycache__/z.pyc",
        "sub/secret",
        "a.py",
    ):
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    (project / ".gitignore").write_text("runs/\n")
    (project / ".rayignore").write_text("corpus/*.txt\n")
    (project / "sub" / ".rayignore").write_text("secret\n")


def test_package_is_what_ray_uploads(project: Path) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    fill(project)
    package = measure(project)
    target = project.parent / "package.zip"
    logger = logging.getLogger("test")
    create_package(str(project), target, include_gitignore=True, excludes=get_runtime_env_default_excludes(), logger=logger)
    with zipfile.ZipFile(target) as zipped:
        uploaded = {i.filename: i.file_size for i in zipped.infolist() if not i.is_dir()}
    assert package.files == set(uploaded)
    assert package.size_bytes == sum(uploaded.values())
    assert {"a.py", "corpus/keep.md", "configs/run.yaml"} <= package.files
    assert not {"runs/a.bin", "corpus/big.txt", ".git/x", ".venv/lib/y", "sub/secret"} & package.files
    assert abs(target.stat().st_size - package.size_bytes) < 300 * len(uploaded), "Ray's zip does not compress"


def test_folder_too_large_names_what_is_big(project: Path) -> None:
    (project / "corpus").mkdir()
    for name, size_mib in (("corpus/a.txt", 90), ("weights.bin", 30), ("c.txt", 1)):
        with open(project / name, "wb") as file:
            file.truncate(size_mib << 20)
    with pytest.raises(ClusterError) as caught:
        check_package(project, "configs/run.yaml")
    message = str(caught.value)
    assert "packs to 121 MiB, Ray takes 100 MiB; the biggest entries are corpus/ 90 MiB, weights.bin 30 MiB, c.txt 1 MiB" in message
    assert message.endswith("add what the job does not need to .rayignore")
    (project / ".rayignore").write_text("corpus/\n")
    assert check_package(project, "configs/run.yaml").size_bytes < 32 << 20


def test_ignored_config_is_refused(project: Path) -> None:
    (project / ".rayignore").write_text("configs/\n")
    with pytest.raises(ClusterError, match=r"configs/run\.yaml would not be uploaded"):
        check_package(project, "configs/run.yaml")


def test_token_at_hand_turns_token_mode_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(jobs, "TOKEN_FILE", tmp_path / "token")
    jobs._use_token()
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / "token").write_text("t")
    jobs._use_token()
    assert os.environ.pop("RAY_AUTH_MODE") == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    jobs._use_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
