"""Temporary files of killed packers go, those of living ones stay."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from blocks_store import T, pack_part, some_blocks

from zhlm.blocks.leftovers import STALE_S, remove_leftovers
from zhlm.blocks.store import ShardWriter, open_shard, writing
from zhlm.storage import Place

KILLED = """
import os, sys
sys.path.insert(0, sys.argv[2])
from blocks_store import some_blocks
from zhlm.blocks.store import ShardWriter
from zhlm.storage import Place
ShardWriter(Place(sys.argv[1]), "aa1", "train", 8, 300).write(some_blocks(9, 1))
os._exit(9)
"""
"""A packer that dies in the middle of a part."""


@pytest.fixture
def store(tmp_path: Path) -> Place:
    return Place(tmp_path / "_blocks")


def hidden(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob(".*") if p.is_file())


def make_old(path: Path, seconds: float = STALE_S + 60) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def killed_packer(store: Place) -> Path:
    before = set(hidden(store.path))
    ran = subprocess.run([sys.executable, "-c", KILLED, str(store), str(Path(__file__).parent)], capture_output=True, timeout=60)
    assert ran.returncode == 9, ran.stderr
    (left,) = set(hidden(store.path)) - before
    return left


def test_of_two_killed_packers_the_old_files_go_and_the_fresh_ones_stay(store: Place) -> None:
    old, fresh = killed_packer(store), killed_packer(store)
    assert old != fresh and remove_leftovers(store) == (0, 0)
    make_old(old)
    make_old(fresh, STALE_S - 60)
    size = old.stat().st_size
    assert size > 0 and remove_leftovers(store) == (1, size)
    assert hidden(store.path) == [fresh]


def test_a_living_packer_keeps_its_files_however_long_it_takes(store: Place) -> None:
    """The held-out blocks of one huge compressed file may be written to once a day."""
    writer = ShardWriter(store, "aa1", "train", T, 300)
    writer.write(some_blocks(2, 1))
    (own,) = hidden(store.path)
    make_old(own)
    assert remove_leftovers(store) == (0, 0)
    shard = writer.close(documents=2, tokens=1, utf8_bytes=1, characters=1)
    assert open_shard(store, shard).num_rows == 2 and hidden(store.path) == []


def test_only_what_a_packer_names_so_is_deleted(store: Place) -> None:
    pack_part(store, "aa1", {"train": [some_blocks(2, 1)]})
    others = [store.path / "aa" / name for name in (".nfs000000000012345600000001", ".hidden", ".aa1.json.notours")]
    for path in [*others, *store.path.rglob("aa1*")]:
        path.touch()
        make_old(path)
    (store / "aa" / "folder").path.mkdir()
    before = sorted(store.path.rglob("*"))
    assert remove_leftovers(store) == (0, 0) and sorted(store.path.rglob("*")) == before


def test_a_store_that_does_not_exist_yet_has_none(store: Place) -> None:
    assert remove_leftovers(store) == (0, 0)


def test_files_for_an_upload_are_kept_apart_and_cleared_by_the_next_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store, folder = Place("s3://nowhere/_blocks"), tmp_path / f"zhlm-packing-{os.getuid()}"
    living = ShardWriter(store, "aa1", "train", T, 300)
    left, fresh = folder / ".aa2.train.01234567", folder / ".aa3.train.01234567"
    for path in (left, fresh):
        path.write_bytes(b"x")
    for path in (left, *folder.glob(".aa1.*")):
        make_old(path)
    with writing(store, "bb1", ["train"], T, 300):
        assert len(hidden(folder)) == 3 and not left.exists()
    living.discard()
    assert hidden(folder) == [fresh]
