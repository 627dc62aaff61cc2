"""Places on a local disk, the run folder, and disks that are full for real."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import run_data
from zhlm.config.schema import RunConfig
from zhlm.errors import RunError, StorageError
from zhlm.storage import MANIFEST, Place, Run, digest, is_remote, resolve_root, storage_errors


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig.model_validate_json(json.dumps(run_data(tmp_path)))


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_text_is_written_whole_read_back_and_replaced(tmp_path: Path) -> None:
    place = Place(tmp_path) / "a" / "b.txt"
    assert not place.exists()
    place.write_text("中文\r\nx")
    assert place.read_text() == "中文\r\nx" and place.exists() and place.name == "b.txt"
    place.write_text("new")
    assert place.read_text() == "new"
    assert names_in(tmp_path / "a") == ["b.txt"], "no temporary file stays"


def test_a_failed_write_leaves_the_old_text(tmp_path: Path) -> None:
    place = Place(tmp_path / "a.txt")
    place.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        place.write_text("half a pair \ud800")
    assert place.read_text() == "old" and names_in(tmp_path) == ["a.txt"]


def test_names_and_delete(tmp_path: Path) -> None:
    place = Place(tmp_path / "folder")
    assert place.names() == []
    place.delete()
    for name in ("b", "a", ".hidden"):
        (place / name).write_text(name)
    (place / "deep" / "c").write_text("c")
    assert place.names() == [".hidden", "a", "b", "deep"]
    (place / "a").delete()
    (place / "deep").delete()
    assert place.names() == [".hidden", "b"]
    place.delete()
    assert not place.exists() and tmp_path.exists()


def test_a_trailing_slash_and_a_file_uri_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    for root in (f"{tmp_path}/", f"file://{tmp_path}"):
        place = Place(root)
        assert (place / "a").read_text() == "x" and place.names() == ["a"] and not place.remote
        assert resolve_root(root) == str(place)
    assert Place("s3://bucket/a/").name == "a" and (Place("s3://bucket/a/") / "b").uri == "s3://bucket/a/b"


@pytest.mark.parametrize(("uri", "remote"), [("s3://b/x", True), ("gs://b", True), ("/a/b", False), ("a/b", False), ("file:///a", False)])
def test_what_is_remote(uri: str, remote: bool) -> None:
    assert is_remote(uri) == remote == Place(uri).remote


def test_local_places_are_on_disk_already(tmp_path: Path) -> None:
    assert Place(tmp_path).on_disk() == tmp_path


def test_an_unknown_kind_of_store_is_one_line() -> None:
    with pytest.raises(StorageError, match=r"s4://bucket/x cannot be used .*name a local folder, s3://bucket/folder or gs://"):
        Place("s4://bucket/x").exists()


@pytest.mark.parametrize("before", [False, True])
def test_staged_content_appears_at_once(tmp_path: Path, before: bool) -> None:
    place = Place(tmp_path / "out")
    if before:
        (place / "old").write_text("old")
    with place.staged() as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "new").write_text("new")
        assert place.names() == (["old"] if before else [])
        assert folder.parent == tmp_path, "on the same disk, so that a rename suffices"
    assert place.names() == ["deep"] and names_in(tmp_path) == ["out"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755, "others of the cluster read it"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_while_staging_leaves_the_old_content_and_no_rubbish(tmp_path: Path, error: type[BaseException]) -> None:
    place = Place(tmp_path / "out")
    (place / "old").write_text("old")
    with pytest.raises(error), place.staged() as folder:
        (folder / "new").write_text("new")
        raise error("inside")
    assert place.names() == ["old"] and names_in(tmp_path) == ["out"]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".out.a1b2c3d4").mkdir()
    (tmp_path / ".out.a1b2c3d4" / "half").write_text("x")
    (tmp_path / ".outer.a1b2c3d4").mkdir()
    with Place(tmp_path / "out").staged() as folder:
        (folder / "new").write_text("new")
    assert names_in(tmp_path) == [".outer.a1b2c3d4", "out"]


@pytest.mark.parametrize("use", ["read", "write", "list", "stage"])
def test_a_file_in_the_way_is_one_line(tmp_path: Path, use: str) -> None:
    (tmp_path / "file").write_text("x")
    place = Place(tmp_path / "file" / "below")
    with pytest.raises(StorageError) as caught:
        match use:
            case "read":
                place.read_text()
            case "write":
                place.write_text("x")
            case "list":
                Place(tmp_path / "file").names()
            case "stage":
                with place.staged():
                    pass
    assert "\n" not in str(caught.value) and str(caught.value).startswith("storage: ") and str(tmp_path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write anywhere, and there is no setpriv to be less")
def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    open_for_all(tmp_path)
    code = f"from zhlm.storage import Place; Place({str(locked / 'run')!r}).write_text('x')"
    less = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    said = last_line([*less, sys.executable, "-c", code])
    assert said == (
        f"zhlm.errors.StorageError: storage: writing {locked / 'run'} failed: Permission denied; check storage.root and its permissions"
    )


def open_for_all(folder: Path) -> None:
    """pytest's folders are closed to others; the parents as well."""
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o055)


def last_line(command: list[str]) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.returncode != 0, f"it worked: {ran.stdout}"
    return ran.stderr.strip().splitlines()[-1]


FULL = """
import sys
from pathlib import Path
import numpy as np
from zhlm.errors import StorageError
from zhlm.storage import Place
from zhlm.blocks.store import writing
from zhlm.records import Blocks
disk = Path(sys.argv[1])
place = Place(disk / "run")
(place / "old.txt").write_text("old")
big = "x" * 3_000_000
def write():
    (place / "old.txt").write_text(big)
def shard():
    blocks = Blocks(np.zeros((3000, 512), np.int64), [np.array([512], np.uint32)] * 3000)
    with writing(place, "ab", ["train"], 512, 300) as writers:
        writers["train"].write(blocks)
        writers["train"].close(documents=1, tokens=1, utf8_bytes=1, characters=1)
def checkpoint():
    import torch
    from zhlm.checkpoint.state import TrainState, save
    save(place, TrainState(step=1), {"w": torch.ones(1_000_000)}, {"m": torch.ones(3)})
try:
    {"text": write, "shard": shard, "checkpoint": checkpoint}[sys.argv[2]]()
except StorageError as error:
    print(error)
print((place / "old.txt").read_text(), sorted(p.name for p in (disk / "run").rglob("*") if p.is_file()))
"""
"""Fills a disk of 1 MiB. The old text must survive and no temporary file may stay."""


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    tried = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, timeout=20
    )
    return tried.returncode == 0


@pytest.mark.skipif(not can_mount(), reason="a small disk is mounted in a namespace of its own, which this machine does not allow")
@pytest.mark.parametrize("what", ["text", "shard", "checkpoint"])
def test_a_full_disk_is_named_and_nothing_old_is_lost(tmp_path: Path, what: str) -> None:
    script = tmp_path / "fill.py"
    script.write_text(FULL, encoding="utf-8")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"mount -t tmpfs -o size=1m none {disk} && exec {sys.executable} {script} {disk} {what}"
    ran = subprocess.run(["unshare", "--map-root-user", "--mount", "sh", "-c", command], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    said, left = ran.stdout.strip().splitlines()
    assert said.startswith("storage: writing ") and str(disk) in said
    if what == "checkpoint":
        assert re.search(r"failed: the disk is full; a file needs 3\.8 MiB and [\d.,]+ [MK]iB are free; free some space, lower train", said)
    else:
        assert said.endswith("failed: the disk is full; free some space or set storage.root to another disk")
    assert left == "old ['old.txt']"


def test_a_full_device_is_named() -> None:
    """/dev/full answers every write as a full disk does, on any Linux."""
    with (
        pytest.raises(StorageError, match="the disk is full; free some space") as caught,
        storage_errors("writing", "there"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC


def test_the_places_of_a_run(config: RunConfig, tmp_path: Path) -> None:
    run = Run.of(config)
    assert run.folder.path == tmp_path / "runs" / "tiny"
    assert run.of_stage("pack").uri == run.blocks.uri and run.of_stage("train").uri == run.checkpoints.uri
    assert run.of_stage("evaluate").uri == run.evaluate.uri and run.of_stage("vocab").uri == run.vocab.uri


def test_sample_paths_lie_in_the_run_and_others_stand_for_themselves(config: RunConfig, tmp_path: Path) -> None:
    run = Run.of(config)
    assert run.resolve("sample://zh/train") == f"{tmp_path}/runs/tiny/sample/zh/train"
    for other in ("/data/zh", "data/*.txt", "s3://bucket/zh"):
        assert run.resolve(other) == other


def test_the_base_is_the_extended_one_where_there_is_one(config: RunConfig, tmp_path: Path) -> None:
    run = Run.of(config)
    assert run.base_model(config) == run.original_model(config) == str(tmp_path / "base")
    data = run_data(tmp_path) | {"vocab": {}, "base": {"model": "sample://base"}, "sample": {"base": {"paths": ["x"]}}}
    extended = RunConfig.model_validate_json(json.dumps(data))
    assert run.base_model(extended) == f"{tmp_path}/runs/tiny/vocab"
    assert run.original_model(extended) == f"{tmp_path}/runs/tiny/sample/base"


def test_a_manifest_is_there_or_the_stage_to_run_is_named(config: RunConfig) -> None:
    run = Run.of(config)
    with pytest.raises(RunError, match=r"pack: .*tiny has no finished pack stage; run `python -m ray_jobs.pack` or the pipeline first"):
        run.manifest("pack")
    (run.blocks / MANIFEST).write_text('{"facts": {"blocks": 3}}')
    assert run.manifest("pack")["facts"] == {"blocks": 3}


def test_where_a_relative_root_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert resolve_root("runs") == str(tmp_path / "runs")
    assert resolve_root("/data/runs") == "/data/runs" and resolve_root("s3://b/runs") == "s3://b/runs"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("ZHLM_HOME", raising=False)
    assert resolve_root("runs") == str(Path.home() / "zhlm" / "runs"), "Ray deletes a job's working directory"
    monkeypatch.setenv("ZHLM_HOME", str(tmp_path / "home"))
    assert resolve_root("runs") == str(tmp_path / "home" / "runs")
    assert resolve_root("/data/runs") == "/data/runs"


def test_a_digest_sees_content_not_order() -> None:
    assert digest({"a": 1, "b": ["中"]}) == digest({"b": ["中"], "a": 1}) == "336281b011b8a6d9"
    assert digest({"a": 1}) != digest({"a": 1.5}) != digest({"a": "1"})
