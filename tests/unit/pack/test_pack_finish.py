"""What a packed stream leaves beside its blocks."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from zhlm.blocks.store import Part, Shard, Split, commit_part
from zhlm.pack import finish as module
from zhlm.pack.finish import finish, totals_of
from zhlm.pack.tasks import write_texts
from zhlm.storage import Place


def part(store: Path, key: str, held_out: list[str], train_documents: int = 2, rejects: list[dict[str, Any]] | None = None) -> Part:
    shards: dict[Split, Shard] = {
        "train": Shard(f"{key}.train.arrow", 3, train_documents, 90, 300, 100, "0"),
        "validation": Shard(f"{key}.validation.arrow", 1, len(held_out), 10, 30, 10, "0"),
    }
    found = Part(key, f"{key}.txt", shards, train_documents + len(held_out) + len(rejects or []), {"empty": len(rejects or [])})
    write_texts(Place(store) / key[:2] / f"{key}.held_out.parquet", held_out)
    commit_part(Place(store), found, rejects=rejects or [])
    return found


def test_facts_are_sums_over_the_parts(tmp_path: Path) -> None:
    reject = {"reason": "empty", "path": "b.txt", "row": 4, "text": " "}
    parts = [part(tmp_path / "store", "aa", ["一"]), part(tmp_path / "store", "bb", ["二", "三"], rejects=[reject])]
    facts = finish(Place(tmp_path / "zh"), Place(tmp_path / "store"), parts, block_tokens=32)
    assert (facts["documents_in"], facts["kept"], facts["dropped"]) == (8, 7, {"empty": 1})
    assert facts["train"] == {
        "documents": 4, "blocks": 6, "tokens": 180, "cut_tokens": 0, "utf8_bytes": 600, "characters": 200, "shards": 2,
        "fill": round(180 / 192, 5),
    }  # fmt: skip
    assert pq.read_table(tmp_path / "zh" / "held_out.parquet").column("text").to_pylist() == ["一", "二", "三"]
    assert [json.loads(line) for line in (tmp_path / "zh" / "rejects.jsonl").read_text().splitlines()] == [reject]


def test_held_out_texts_and_rejects_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_OUT_DOCUMENTS", 2)
    monkeypatch.setattr(module, "REJECTS_PER_REASON", 1)
    rejects = [{"reason": reason, "path": "b.txt", "row": 1, "text": ""} for reason in ("empty", "empty", "too_short")]
    parts = [part(tmp_path, "aa", ["一"], rejects=rejects), part(tmp_path, "bb", ["二", "三"], rejects=rejects)]
    finish(Place(tmp_path / "zh"), Place(tmp_path), parts, block_tokens=32)
    assert pq.read_table(tmp_path / "zh" / "held_out.parquet").num_rows == 2
    found = [json.loads(line)["reason"] for line in (tmp_path / "zh" / "rejects.jsonl").read_text().splitlines()]
    assert found == ["empty", "too_short"]


def test_no_block_has_no_fill() -> None:
    assert totals_of([], "train", 32)["fill"] == 0.0
