"""Blocks come out of the store as they went in, in the order's order."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from zhlm.blocks.read import BlockReader
from zhlm.blocks.store import Shard, commit, open_shard, read_ledger, write_shard
from zhlm.errors import RunError, StorageError
from zhlm.records import Blocks
from zhlm.storage import Place

T = 8


def some_blocks(count: int, seed: int, vocabulary: int) -> Blocks:
    random = np.random.default_rng(seed)
    ends = [np.array([3, int(random.integers(4, T + 1))], np.uint32) for _ in range(count)]
    return Blocks(random.integers(0, vocabulary, (count, T)), ends)


def put(split: Place, counts: list[int], vocabulary: int = 300) -> list[Blocks]:
    parts = [some_blocks(n, seed=i, vocabulary=vocabulary) for i, n in enumerate(counts)]
    sizes = {"documents": 2, "tokens": 16, "utf8_bytes": 40, "characters": 20}
    shards = [write_shard(split, i, b, vocabulary=vocabulary, source=f"f{i}", **sizes) for i, b in enumerate(parts)]
    commit(split, shards[::-1])
    return parts


@pytest.mark.parametrize(("vocabulary", "kind"), [(1 << 16, pa.uint16()), ((1 << 16) + 1, pa.uint32())])
def test_a_shard_reads_back_as_written(tmp_path: Path, vocabulary: int, kind: pa.DataType) -> None:
    split = Place(tmp_path / "zh" / "train")
    parts = put(split, [3], vocabulary)
    (shard,) = read_ledger(split)
    table = open_shard(split, shard)
    assert table.schema.field("input_ids").type == pa.list_(kind, T)
    assert np.array_equal(np.stack(table["input_ids"].to_numpy()), parts[0].ids_BT)
    assert [e.tolist() for e in parts[0].ends] == table["document_ends"].to_pylist()


def test_the_largest_id_survives(tmp_path: Path) -> None:
    for vocabulary in (1 << 16, 1 << 17):
        split = Place(tmp_path / str(vocabulary))
        ids = np.full((1, T), vocabulary - 1)
        full = Blocks(ids, [np.array([T], np.uint32)])
        commit(split, [write_shard(split, 0, full, vocabulary=vocabulary, documents=1, tokens=T, utf8_bytes=1, characters=1, source="x")])
        assert BlockReader(Place(tmp_path), {str(vocabulary): 1.0}, ".", 1).first(0, 1).ids_BT.tolist() == ids.tolist()


def test_the_ledger_is_in_index_order_and_absent_at_first(tmp_path: Path) -> None:
    split = Place(tmp_path / "zh" / "train")
    assert read_ledger(split) == []
    put(split, [2, 0, 1])
    ledger = read_ledger(split)
    assert [(s.index, s.blocks, s.source) for s in ledger] == [(0, 2, "f0"), (1, 0, "f1"), (2, 1, "f2")]
    assert all(isinstance(s, Shard) and len(s.sha256) == 64 for s in ledger)


def test_an_uncommitted_shard_does_not_count(tmp_path: Path) -> None:
    split = Place(tmp_path / "zh" / "train")
    put(split, [2])
    write_shard(split, 1, some_blocks(5, 1, 300), vocabulary=300, documents=1, tokens=1, utf8_bytes=1, characters=1, source="late")
    assert [s.index for s in read_ledger(split)] == [0]


def test_the_same_blocks_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(Place(tmp_path / name), [3, 2])
    assert [s.sha256 for s in read_ledger(Place(tmp_path / "a"))] == [s.sha256 for s in read_ledger(Place(tmp_path / "b"))]


def test_a_shard_that_is_not_what_the_ledger_says_is_named(tmp_path: Path) -> None:
    split = Place(tmp_path / "zh" / "train")
    put(split, [3, 2])
    (tmp_path / "zh/train/shard-00000.arrow").write_bytes((tmp_path / "zh/train/shard-00001.arrow").read_bytes())
    with pytest.raises(StorageError, match=r"shard-00000.arrow holds 2 blocks, the ledger says 3; delete .* and pack again"):
        open_shard(split, read_ledger(split)[0])


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "other"])
def test_a_damaged_shard_is_one_line(tmp_path: Path, damage: str) -> None:
    split = Place(tmp_path / "zh" / "train")
    put(split, [3])
    path = tmp_path / "zh/train/shard-00000.arrow"
    data = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "other": b"x" * 999}[damage])
    with pytest.raises(StorageError) as caught:
        open_shard(split, read_ledger(split)[0])
    assert "\n" not in str(caught.value) and "shard-00000.arrow" in str(caught.value)


def test_the_reader_follows_the_order(tmp_path: Path) -> None:
    parts = {name: put(Place(tmp_path / name / "train"), counts) for name, counts in (("zh", [4, 0, 3]), ("en", [2, 2]))}
    reader = BlockReader(Place(tmp_path), {"zh": 3.0, "en": 1.0}, "train", seed=5)
    indices = [0, 11, 3, 3, 7]
    blocks = reader.read(indices)
    assert blocks.ids_BT.shape == (5, T) and len(blocks.ends) == 5
    for b, index in enumerate(indices):
        a = reader.order[index]
        source = parts[("zh", "en")[a.stream]][a.shard]
        assert blocks.ids_BT[b].tolist() == source.ids_BT[a.row].tolist()
        assert blocks.ends[b].tolist() == source.ends[a.row].tolist()


def test_first_gives_the_blocks_of_one_stream_in_ledger_order(tmp_path: Path) -> None:
    parts = put(Place(tmp_path / "zh" / "validation"), [2, 0, 3])
    reader = BlockReader(Place(tmp_path), {"zh": 1.0}, "validation", seed=5)
    every = np.concatenate([p.ids_BT for p in parts])
    assert reader.first(0, 4).ids_BT.tolist() == every[:4].tolist()
    assert reader.first(0, 99).ids_BT.tolist() == every.tolist()


def test_a_stream_without_a_block_is_named(tmp_path: Path) -> None:
    put(Place(tmp_path / "zh" / "train"), [2])
    put(Place(tmp_path / "en" / "train"), [0])
    with pytest.raises(RunError, match=r"en/train holds no block; run the pack stage"):
        BlockReader(Place(tmp_path), {"zh": 1.0, "en": 1.0}, "train", seed=1)
