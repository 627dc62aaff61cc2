"""Blocks come out of the store as they went in; what is not whole does not count."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from blocks_store import Packer, T, pack_part, some_blocks

from zhlm.blocks.store import (
    Ledger,
    Part,
    Plan,
    Planned,
    ShardWriter,
    beat,
    commit_part,
    delete_part,
    find_part,
    open_shard,
    read_heartbeat,
    read_plan,
    writing,
)
from zhlm.blocks.store import write_plan as save_plan
from zhlm.errors import RunError, StorageError
from zhlm.records import Blocks
from zhlm.storage import Place


@pytest.fixture
def store(tmp_path: Path) -> Place:
    return Place(tmp_path / "_blocks")


@pytest.mark.parametrize(("vocabulary", "kind"), [(1 << 16, pa.uint16()), ((1 << 16) + 1, pa.uint32())])
def test_a_shard_reads_back_as_written(store: Place, vocabulary: int, kind: pa.DataType) -> None:
    batches = [some_blocks(3, 1, vocabulary), some_blocks(0, 2), some_blocks(2, 3, vocabulary)]
    table = open_shard(store, pack_part(store, "aa1", {"train": batches}, vocabulary=vocabulary).shards["train"])
    assert table.schema.field("input_ids").type == pa.list_(kind, T) and table.num_rows == 5
    assert np.array_equal(np.stack(table["input_ids"].to_numpy()), np.concatenate([b.ids_BT for b in batches]))
    assert table["document_ends"].to_pylist() == [e.tolist() for b in batches for e in b.ends]


def test_the_largest_id_survives(store: Place) -> None:
    for vocabulary in (1 << 16, 1 << 17):
        full = Blocks(np.full((1, T), vocabulary - 1), [np.array([T], np.uint32)])
        shard = pack_part(store, f"bb{vocabulary}", {"train": [full]}, vocabulary=vocabulary).shards["train"]
        assert open_shard(store, shard)["input_ids"].to_pylist() == full.ids_BT.tolist()


def test_a_part_counts_when_it_is_committed(store: Place) -> None:
    with writing(store, "cc1", ["train"], T, 300) as writers:
        writers["train"].write(some_blocks(2, 1))
        shard = writers["train"].close(documents=1, tokens=1, utf8_bytes=1, characters=1)
    assert find_part(store, "cc1") is None and open_shard(store, shard).num_rows == 2
    part = pack_part(store, "cc1", {"train": [some_blocks(2, 1)], "validation": []})
    assert find_part(store, "cc1") == (part, {}) and part.shards["train"].sha256 == shard.sha256
    delete_part(store, "cc1")
    assert find_part(store, "cc1") is None and (store / "cc").names() == []


def test_a_packer_that_fails_leaves_nothing(store: Place) -> None:
    with pytest.raises(ValueError, match="inside"), writing(store, "dd1", ["train", "validation"], T, 300) as writers:
        writers["train"].write(some_blocks(2, 1))
        raise ValueError("inside")
    assert (store / "dd").names() == []


def test_two_packers_of_one_part_do_no_harm(store: Place) -> None:
    """In one process they would share the temporary name, which ends in the process id: one is done before the other begins to write."""
    other = ShardWriter(store, "ee1", "train", T, 300)
    other.write(some_blocks(2, 1))
    other.close(documents=2, tokens=1, utf8_bytes=1, characters=1)
    part = pack_part(store, "ee1", {"train": [some_blocks(2, 1)]})
    other.discard()
    assert open_shard(store, part.shards["train"]).num_rows == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "other", "one byte", "another shard"])
def test_a_damaged_shard_is_one_line(store: Place, damage: str) -> None:
    shard = pack_part(store, "ff1", {"train": [some_blocks(3, 1)]}).shards["train"]
    other = pack_part(store, "ff2", {"train": [some_blocks(2, 1)]}).shards["train"]
    path = (store / shard.file).path
    data = path.read_bytes()
    contents = {
        "cut": data[: len(data) // 2], "empty": b"", "other": b"x" * 999, "another shard": (store / other.file).path.read_bytes(),
        "one byte": data[:300] + bytes([data[300] ^ 1]) + data[301:],
    }  # fmt: skip
    path.unlink() if damage == "gone" else path.write_bytes(contents[damage])
    with pytest.raises(StorageError) as caught:
        open_shard(store, shard)
    assert "\n" not in str(caught.value) and "ff1.train.arrow" in str(caught.value)
    assert "run `zhlm blocks RUN --repair`" in str(caught.value)


@pytest.mark.parametrize("word", ["", '{"key": "ff1', "[]", '{"key": "ff1", "notes": {}}', '{"notes": {}, "shards": {"train": {}}}'])
def test_a_part_whose_word_is_damaged_is_not_packed(store: Place, word: str) -> None:
    part = pack_part(store, "ff1", {"train": [some_blocks(3, 1)]})
    (store / "ff" / "ff1.json").write_text(word)
    assert find_part(store, "ff1") is None
    commit_part(store, part)
    assert find_part(store, "ff1") == (part, {})


def test_the_plan_reads_back(tmp_path: Path) -> None:
    blocks = Place(tmp_path / "blocks")
    assert read_plan(blocks) is None
    parts = tuple(Planned(f"k{n}", f"语料{n}.txt", splits) for n, splits in enumerate([("train",), ("train", "validation"), ()]))
    plan = Plan({"tokenizer": "t"}, {"zh": parts})
    save_plan(blocks, plan)
    assert read_plan(blocks) == plan
    assert (plan.of_split("zh", "train"), plan.of_split("zh", "validation")) == ([0, 1], [1])


def test_the_ledger_follows_its_packer(tmp_path: Path) -> None:
    packer = Packer(tmp_path / "run", {"zh": [2, 0], "en": [3]}).plan()
    reader = Ledger(packer.run.blocks)
    assert reader.read() == {} and reader.sound() == ({}, [])
    packer.pack(("en", 0))
    assert list(reader.read()) == [("en", 0)]
    packer.pack(("zh", 1))
    assert [p.source for p in reader.read().values()] == ["语料/en-0.txt", "语料/zh-1.txt"]
    assert reader.sound() == (reader.read(), [])


def test_a_torn_last_line_does_not_count_and_a_broken_one_is_named(tmp_path: Path) -> None:
    packer = Packer(tmp_path / "run", {"zh": [2, 1, 1]}).plan().pack()
    ledger, path = packer.ledger, (packer.run.blocks / "ledger.jsonl").path
    whole = path.read_text()
    for cut in range(1, len(whole.splitlines()[-1].encode()) + 1):  # also inside a character
        path.write_bytes(whole.encode()[:-cut])
        assert list(ledger.read()) == [("zh", 0), ("zh", 1)]
    assert ledger.sound()[1] == ["the last line is torn"]
    first, second, third = whole.splitlines()
    for broken in (second[:40], '{"stream": "zh"}', json.dumps(json.loads(second) | {"more": 1}), "[]", '"a"'):
        path.write_text("\n".join([first, broken, third, ""]))
        with pytest.raises(RunError, match=r"ledger.jsonl line 2 is broken .*; run `zhlm blocks RUN --repair`") as caught:
            ledger.read()
        assert "\n" not in str(caught.value)
        parts, problems = ledger.sound()
        assert list(parts) == [("zh", 0), ("zh", 2)] and problems == ["line 2 is broken"]
    ledger.start(parts)
    assert ledger.read() == parts
    assert isinstance(parts["zh", 0], Part)


def test_each_beat_differs(tmp_path: Path) -> None:
    blocks = Place(tmp_path / "blocks")
    assert read_heartbeat(blocks) is None
    seen = set()
    for _ in range(20):
        beat(blocks, "packing")
        seen.add(read_heartbeat(blocks))
    assert len(seen) == 20
    beat(blocks, "failed", "磁盘满了")
    sign = read_heartbeat(blocks)
    assert sign is not None and (sign.state, sign.message) == ("failed", "磁盘满了")
