"""Places in an object store, against moto's S3 server on this machine."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from zhlm.errors import StorageError
from zhlm.storage import Place


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    """A fresh bucket; the cache of copies goes into the test's folder."""
    import boto3

    account = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (account | {"AWS_ENDPOINT_URL": server, "AWS_EC2_METADATA_DISABLED": "true"}).items():
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
    from zhlm.blocks.store import commit, write_shard
    from zhlm.checkpoint.state import TrainState, newest, prune, save
    from zhlm.records import Blocks

    split = bucket / "blocks" / "zh" / "train"
    ids = np.arange(16).reshape(2, 8)
    blocks = Blocks(ids, [np.array([8], np.uint32)] * 2)
    commit(split, [write_shard(split, 0, blocks, vocabulary=99, documents=2, tokens=16, utf8_bytes=1, characters=1, source="x")])
    assert BlockReader(bucket / "blocks", {"zh": 1.0}, "train", 1).first(0, 2).ids_BT.tolist() == ids.tolist()
    checkpoints = bucket / "checkpoints"
    for step in (1, 2, 3):
        save(checkpoints, TrainState(step=step), {"w": torch.full((2,), float(step))}, {"m": torch.ones(2)})
    (checkpoints / "step_00000003" / "progress.json").delete()
    prune(checkpoints, 2)
    found, passed_over = newest(checkpoints)
    assert found is not None and found.state.step == 2 and found.trainable()["w"].tolist() == [2.0, 2.0]
    assert passed_over == ["step_00000003 passed over: no progress.json"]


@pytest.mark.parametrize("missing", ["file", "bucket"])
def test_what_is_missing_is_one_line(bucket: Place, missing: str) -> None:
    place = bucket / "gone" if missing == "file" else Place("s3://no-such-bucket-at-all/x")
    with pytest.raises(StorageError) as caught:
        place.read_text()
    assert "\n" not in str(caught.value) and str(place) in str(caught.value)
    with pytest.raises(StorageError, match="fetching"):
        place.on_disk()


def test_a_store_out_of_reach_is_one_line_soon(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    started_s = time.monotonic()
    with pytest.raises(StorageError, match="storage: looking for s3://") as caught:
        bucket.exists()
    assert "\n" not in str(caught.value) and time.monotonic() - started_s < 30
