"""Facts of a stream, and the check that nothing was lost."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from zhlm.blocks.store import Shard, read_ledger
from zhlm.errors import VerificationError
from zhlm.pack.finish import finish
from zhlm.pack.tasks import Packed, Reject, Survey
from zhlm.storage import Place


def shard(index: int, documents: int, blocks: int, tokens: int) -> Shard:
    return Shard(index, f"shard-{index:05d}.arrow", blocks, documents, tokens, 3 * tokens, tokens, f"{index}.txt", "0" * 64)


def reject(reason: str, row: int) -> Reject:
    return Reject(reason, "a.txt", row, "坏")


def test_facts_add_up_over_files(tmp_path: Path) -> None:
    surveys = [Survey(10, Counter(too_short=1), rejects=[reject("too_short", 4)]), Survey(5, Counter(empty=2))]
    packed = [
        Packed({"train": shard(0, 6, 4, 30), "validation": shard(0, 1, 1, 5)}, Counter(duplicate=2), [reject("duplicate", 9)], ["一"]),
        Packed({"train": shard(1, 3, 1, 10), "validation": shard(1, 0, 0, 0)}, Counter(), [], ["二"]),
    ]
    facts = finish(Place(tmp_path), surveys, packed, block_tokens=10)
    assert facts == {
        "documents_in": 15,
        "kept": 10,
        "dropped": {"duplicate": 2, "empty": 2, "too_short": 1},
        "train": {"documents": 9, "blocks": 5, "tokens": 40, "utf8_bytes": 120, "characters": 40, "fill": 0.8},
        "validation": {"documents": 1, "blocks": 1, "tokens": 5, "utf8_bytes": 15, "characters": 5, "fill": 0.5},
    }
    assert read_ledger(Place(tmp_path / "train")) == [packed[0].shards["train"], packed[1].shards["train"]]
    assert pq.read_table(tmp_path / "held_out.parquet").column("text").to_pylist() == ["一", "二"]
    lines = (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["too_short", "duplicate"]


def test_rejects_are_capped_over_all_files(tmp_path: Path) -> None:
    surveys = [Survey(15, Counter(empty=15), rejects=[reject("empty", i) for i in range(15)]) for _ in range(2)]
    finish(Place(tmp_path), surveys, [], block_tokens=10)
    assert len((tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()) == 20


def test_a_lost_document_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="read 10 documents, kept 8"):
        finish(Place(tmp_path), [Survey(10, Counter(empty=1))], [Packed({"train": shard(0, 8, 1, 8)})], block_tokens=10)
    assert not (tmp_path / "train").exists()
