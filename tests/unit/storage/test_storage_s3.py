"""Places in an object store, against moto's S3 s3_server on this machine."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zhlm import cache, storage
from zhlm.blocks.store import Ledger, Part, Shard, open_shard, writing
from zhlm.corpus.changes import changes
from zhlm.errors import StorageError
from zhlm.model.files import listing_of_base
from zhlm.records import Blocks
from zhlm.storage import Place, Run


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    """A fresh bucket; the cache of copies goes into the test's folder."""
    import boto3

    account = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (account | {"AWS_ENDPOINT_URL": s3_server, "AWS_EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    name = f"b{time.time_ns()}"
    boto3.client("s3").create_bucket(Bucket=name)
    return Place(f"s3://{name}/runs")


def test_text_names_and_delete(bucket: Place) -> None:
    place = bucket / "tiny"
    assert not place.exists() and place.names() == []
    (place / "a.txt").write_text("中文")
    (place / "a.txt").write_text("中文 again")
    (place / "deep" / "b.txt").write_text("b")
    assert (place / "a.txt").read_text() == "中文 again"
    assert place.names() == ["a.txt", "deep"] and place.exists()
    place.delete()
    assert place.names() == []
    (place / "gone").delete()


def test_staged_content_replaces_what_was_there(bucket: Place, tmp_path: Path) -> None:
    place = bucket / "out"
    (place / "old").write_text("old")
    with place.staged() as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "new").write_text("new")
        assert place.names() == ["old"]
    assert place.names() == ["deep"] and (place / "deep" / "new").read_text() == "new"
    assert not folder.exists()


def test_an_error_while_staging_leaves_the_old_content(bucket: Place) -> None:
    place = bucket / "out"
    (place / "old").write_text("old")
    with pytest.raises(ValueError, match="inside"), place.staged() as folder:
        (folder / "new").write_text("new")
        raise ValueError("inside")
    assert place.names() == ["old"] and not folder.exists()


def test_a_copy_is_made_once_and_again_after_a_change(bucket: Place) -> None:
    place = bucket / "model"
    (place / "weights").write_text("one")
    (place / "deep" / "config").write_text("c")
    first = place.on_disk()
    assert (first / "weights").read_text() == "one" and (first / "deep" / "config").read_text() == "c"
    assert place.on_disk() == first
    (place / "weights").write_text("two, longer")
    second = place.on_disk()
    assert second != first and (second / "weights").read_text() == "two, longer"
    assert (place / "weights").on_disk().read_text() == "two, longer"


def test_blocks_and_checkpoints_live_there_too(bucket: Place) -> None:
    import torch

    from zhlm.blocks.read import BlockReader
    from zhlm.blocks.store import Ledger, Part, Plan, Planned, beat, bytes_of, commit_part, delete_part, find_part, write_plan, writing
    from zhlm.checkpoint.state import TrainState, newest, prune, save
    from zhlm.records import Blocks

    run, ids = Run(bucket / "run"), np.arange(16).reshape(2, 8)
    for number, key in enumerate(("aa0", "aa1")):
        with writing(run.store, key, ["train"], 8, 99) as writers:
            writers["train"].write(Blocks(ids + number, [np.array([8], np.uint32)] * 2))
            shard = writers["train"].close(documents=2, tokens=16, utf8_bytes=1, characters=1)
        part = Part(key, "x", {"train": shard})
        commit_part(run.store, part)
        Ledger(run.blocks).append("zh", number, part)
    write_plan(run.blocks, Plan({}, {"zh": (Planned("aa0", "x", ("train",)), Planned("aa1", "x", ("train",)))}))
    beat(run.blocks, "done")
    assert run.store.uri == str(bucket / "_blocks") and bytes_of(run.store, [shard]) > 0
    reader = BlockReader(run, {"zh": 1.0}, "train", 1)
    assert sorted(reader.read(range(4)).ids_BT[:, 0].tolist()) == [0, 1, 8, 9]
    delete_part(run.store, "aa1")
    assert find_part(run.store, "aa1") is None and find_part(run.store, "aa0") is not None
    checkpoints = bucket / "checkpoints"
    for step in (1, 2, 3):
        save(checkpoints, TrainState(step=step), {"w": torch.full((2,), float(step))}, {"m": torch.ones(2)})
    (checkpoints / "step_00000003" / "progress.json").delete()
    prune(checkpoints, 2)
    found, passed_over = newest(checkpoints)
    assert found is not None and found.state.step == 2 and found.trainable()["w"].tolist() == [2.0, 2.0]
    assert passed_over == ["step_00000003 passed over: no progress.json"]


def test_a_base_in_the_store_that_is_replaced_is_another_one(bucket: Place) -> None:
    for name in ("config.json", "model.safetensors", "README.md"):
        (bucket / "base" / name).write_text(name)
    before = listing_of_base(str(bucket / "base"), ["weights"])
    assert list(before) == [f"{bucket}/base/config.json", f"{bucket}/base/model.safetensors"]
    (bucket / "base" / "model.safetensors").write_text("more weights")
    assert changes(before, listing_of_base(str(bucket / "base"), ["weights"])) == [f"{bucket}/base/model.safetensors changed"]
    assert listing_of_base(str(bucket / "none"), ["weights"]) == {}


def test_an_upload_and_a_download_give_signs_of_life(bucket: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "UPLOAD_BYTES", 3 << 20)
    monkeypatch.setattr(cache, "WATCH_S", 0.001)
    file, content = tmp_path / "large", np.random.default_rng(1).bytes(10 << 20)
    file.write_bytes(content)
    beats: list[str] = []
    (bucket / "deep" / "large").adopt(file, lambda: beats.append("up"))
    assert beats == ["up"] * 4
    assert ((bucket / "deep").on_disk(lambda: beats.append("down")) / "large").read_bytes() == content and "down" in beats


@pytest.mark.parametrize("missing", ["file", "bucket"])
def test_what_is_missing_is_one_line(bucket: Place, missing: str) -> None:
    place = bucket / "gone" if missing == "file" else Place("s3://no-such-bucket-at-all/x")
    with pytest.raises(StorageError) as caught:
        place.read_text()
    assert "\n" not in str(caught.value) and str(place) in str(caught.value)
    with pytest.raises(StorageError, match="fetching"):
        place.on_disk()


def test_a_store_out_of_reach_is_one_line_that_says_for_how_long(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(storage, "RETRY_S", 0.3)
    monkeypatch.setattr(storage, "RETRY_PAUSE_S", 0.1)
    started_s = time.monotonic()
    with pytest.raises(StorageError, match=r"storage: looking for s3://.* \(tried for \d+ s\); check storage.root") as caught:
        bucket.exists()
    assert "\n" not in str(caught.value) and time.monotonic() - started_s < 30


def test_a_store_that_comes_back_is_waited_for(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation of a place, each begun while nothing listens."""
    from moto.server import ThreadedMotoServer

    (bucket / "a.txt").write_text("old")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(storage, "RETRY_PAUSE_S", 0.1)
    operations: list[Callable[[], object]] = [
        lambda: (bucket / "a.txt").write_text("new"),
        lambda: (bucket / "a.txt").read_text(),
        lambda: (bucket / "a.txt").exists(),
        lambda: bucket.names(),
        lambda: (bucket / "a.txt").on_disk().read_text(),
    ]
    done = []
    for operation in operations:
        s3_server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        late = threading.Timer(0.5, s3_server.start)
        late.start()
        done.append(operation())
        late.join()
        s3_server.stop()
    assert done == [None, "new", True, ["a.txt"], "new"]


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no"), PermissionError(13, "no"), OSError("AWS Error ACCESS_DENIED during X"),
                                   OSError("AWS Error NO_SUCH_BUCKET during X"), OSError(28, "No space left on device")])  # fmt: skip
def test_what_waiting_would_not_mend_is_raised_at_once(error: OSError) -> None:
    calls = []

    def action() -> None:
        calls.append(1)
        raise error

    with pytest.raises(OSError) as caught:
        storage.retrying("s3://bucket/x", action)
    assert caught.value is error and len(calls) == 1


def test_a_local_place_is_not_tried_again() -> None:
    with pytest.raises(ConnectionResetError):
        storage.retrying("/somewhere", lambda: (_ for _ in ()).throw(ConnectionResetError(104, "reset")))


def test_a_long_ledger_is_not_written_for_every_part(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an object store lacks for a moment is there in the end, and where a packer goes on after another."""
    written: list[int] = []
    write = Place.write_text

    def slowly(place: Place, text: str) -> None:
        written.append(len(text))
        time.sleep(0.05)
        write(place, text)

    monkeypatch.setattr(Place, "write_text", slowly)
    parts = {("zh", n): Part(f"k{n}", "f", {}) for n in range(40)}
    ledger = Ledger(bucket / "tiny")
    ledger.start({})
    for (stream, number), part in parts.items():
        ledger.append(stream, number, part)
    ledger.flush()
    assert len(written) < 10 and Ledger(bucket / "tiny").read() == parts
    Ledger(bucket / "tiny").append("en", 0, Part("e", "f", {}))
    assert Ledger(bucket / "tiny").read() == parts | {("en", 0): Part("e", "f", {})}


def test_a_packer_that_fails_leaves_the_shard_of_another_as_it_is(bucket: Place, tmp_path: Path) -> None:
    def write(rows: int, fail: bool) -> Shard:
        with writing(bucket / "_blocks", "abcd", ["train"], 4, 300) as writers:
            writers["train"].write(Blocks(np.ones((rows, 4), np.int64), [np.array([4], np.uint32)] * rows))
            if fail:
                raise ValueError("inside")
            return writers["train"].close(documents=1, tokens=4 * rows, utf8_bytes=1, characters=1)

    shard = write(20, fail=False)
    with pytest.raises(ValueError, match="inside"):
        write(2, fail=True)
    assert open_shard(bucket / "_blocks", shard).num_rows == 20
    assert not list(tmp_path.glob(".abcd*"))
