"""The end of packing a stream: its ledgers, the held-out documents, a sample of rejects, and the facts, with nothing lost on the way."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zhlm.blocks.store import Shard, commit
from zhlm.errors import VerificationError
from zhlm.pack.tasks import REJECTS_PER_REASON, Packed, Reject, Split, Survey
from zhlm.storage import Place, storage_errors

HELD_OUT = "held_out.parquet"
REJECTS = "rejects.jsonl"


def dropped(surveys: Sequence[Survey], packed: Sequence[Packed]) -> dict[str, int]:
    """How many documents of a stream were dropped, by reason."""
    total: Counter[str] = Counter()
    for counts in [*(s.dropped for s in surveys), *(p.dropped for p in packed)]:
        total.update(counts)
    return dict(sorted(total.items()))


def finish(folder: Place, surveys: Sequence[Survey], packed: Sequence[Packed], block_tokens: int) -> dict[str, Any]:
    """Commit the shards of a stream and return its facts.

    Raises: VerificationError when a document is neither in a block nor counted as dropped.
    """
    splits: tuple[Split, ...] = ("train", "validation")
    shards = {split: [p.shards[split] for p in packed if split in p.shards] for split in splits}
    documents_in, reasons = sum(s.documents for s in surveys), dropped(surveys, packed)
    kept = sum(s.documents for split in splits for s in shards[split])
    if documents_in != kept + sum(reasons.values()):
        raise VerificationError(f"pack: {folder} read {documents_in} documents, kept {kept} and dropped {reasons}; report this as a bug")
    _write_held_out(folder, [text for p in packed for text in p.held_out])
    _write_rejects(folder, [*(r for s in surveys for r in s.rejects), *(r for p in packed for r in p.rejects)])
    for split in splits:
        commit(folder / split, shards[split])
    totals = {str(split): _totals(shards[split], block_tokens) for split in splits}
    return {"documents_in": documents_in, "kept": kept, "dropped": reasons, **totals}


def _totals(shards: Sequence[Shard], block_tokens: int) -> dict[str, Any]:
    names = ("documents", "blocks", "tokens", "utf8_bytes", "characters")
    totals: dict[str, Any] = {name: sum(getattr(s, name) for s in shards) for name in names}
    capacity = totals["blocks"] * block_tokens
    return totals | {"fill": round(totals["tokens"] / capacity, 5) if capacity else 0.0}


def _write_held_out(folder: Place, texts: list[str]) -> None:
    place = folder / HELD_OUT
    with storage_errors("writing", place):
        filesystem, path = place._open()
        filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        with filesystem.open_output_stream(path) as stream:
            pq.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), stream)


def _write_rejects(folder: Place, rejects: Sequence[Reject]) -> None:
    """The first few of each reason, in the order of files and rows."""
    seen: Counter[str] = Counter()
    lines = []
    for reject in rejects:
        seen[reject.reason] += 1
        if seen[reject.reason] <= REJECTS_PER_REASON:
            lines.append(json.dumps(asdict(reject), ensure_ascii=False) + "\n")
    (folder / REJECTS).write_text("".join(lines))
