"""The end of packing: each stream's facts, its held-out texts, and a readable sample of what was rejected."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from zhlm.blocks.store import SPLITS, Part, Split, find_part
from zhlm.pack.tasks import HELD_OUT_DOCUMENTS, REJECTS_PER_REASON, write_texts
from zhlm.storage import Place, storage_errors

HELD_OUT = "held_out.parquet"
REJECTS = "rejects.jsonl"
REJECTS_PARTS = 64
"""Rejects are taken from the first parts: enough to see what the rules do, without opening thousands of files."""


def finish(folder: Place, store: Place, parts: Sequence[Part], block_tokens: int) -> dict[str, Any]:
    """Write what a stream has beside its blocks and return its facts."""
    _write_held_out(folder, store, parts)
    _write_rejects(folder, store, parts)
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.dropped)
    totals = {str(split): totals_of(parts, split, block_tokens) for split in SPLITS}
    return {
        "documents_in": sum(p.documents for p in parts),
        "kept": sum(t["documents"] for t in totals.values()),
        "dropped": dict(sorted(dropped.items())),
        **totals,
    }


def totals_of(parts: Sequence[Part], split: Split, block_tokens: int) -> dict[str, Any]:
    """Sums over a split's shards."""
    shards = [p.shards[split] for p in parts if split in p.shards]
    names = ("documents", "blocks", "tokens", "cut_tokens", "utf8_bytes", "characters")
    totals: dict[str, Any] = {name: sum(getattr(s, name) for s in shards) for name in names}
    capacity = totals["blocks"] * block_tokens
    return totals | {"shards": len(shards), "fill": round(totals["tokens"] / capacity, 5) if capacity else 0.0}


def _write_held_out(folder: Place, store: Place, parts: Sequence[Part]) -> None:
    texts: list[str] = []
    for part in parts:
        if len(texts) >= HELD_OUT_DOCUMENTS:
            break
        if "validation" in part.shards and part.shards["validation"].documents:
            texts += _read_texts(store / part.key[:2] / f"{part.key}.{HELD_OUT}")
    write_texts(folder / HELD_OUT, texts[:HELD_OUT_DOCUMENTS])


def _read_texts(place: Place) -> list[str]:
    with storage_errors("reading", place):
        filesystem, path = place._open()
        with filesystem.open_input_file(path) as file:
            texts: list[str] = pq.read_table(file).column("text").to_pylist()
            return texts


def _write_rejects(folder: Place, store: Place, parts: Sequence[Part]) -> None:
    """The first few of each reason, in the order of the parts."""
    seen: Counter[str] = Counter()
    lines = []
    for part in [p for p in parts if p.dropped][:REJECTS_PARTS]:
        found = find_part(store, part.key)
        notes: Mapping[str, Any] = found[1] if found else {}
        for reject in notes.get("rejects", ()):
            seen[reject["reason"]] += 1
            if seen[reject["reason"]] <= REJECTS_PER_REASON:
                lines.append(json.dumps(reject, ensure_ascii=False) + "\n")
    (folder / REJECTS).write_text("".join(lines))
