"""Blocks of made-up documents, as the pack stage leaves them: for what needs blocks, and not their text."""

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zhlm.blocks.store import Ledger, Part, Plan, Planned, Split, beat, commit_part, write_plan, writing
from zhlm.records import Blocks
from zhlm.storage import Place, Run


def write_blocks(
    folder: Path, stream: str, *, blocks: int, block_tokens: int, vocabulary: int, documents_per_block: int = 2, seed: int = 5
) -> None:
    """A run's ledger, plan and manifest, with one shard to train on and one held out; each document counts up from a random id."""
    run, random = Run(Place(folder)), np.random.default_rng(seed)
    totals: dict[str, dict[str, int]] = {}
    key = hashlib.sha256(repr((stream, blocks, block_tokens, vocabulary, documents_per_block, seed)).encode()).hexdigest()[:32]
    splits: dict[Split, int] = {"train": blocks, "validation": 8}
    with writing(run.store, key, list(splits), block_tokens, vocabulary) as writers:
        shards = {}
        for split, count in splits.items():
            starts = random.integers(0, vocabulary, (count, 1))
            ends = [_ends(random, block_tokens, documents_per_block) for _ in range(count)]
            writers[split].write(Blocks((starts + np.arange(block_tokens)) % vocabulary, ends))
            tokens, documents = count * block_tokens, sum(map(len, ends))
            shards[split] = writers[split].close(documents=documents, tokens=tokens, utf8_bytes=2 * tokens, characters=tokens)
            totals[split] = {"blocks": count, "tokens": tokens}
    part = Part(key, "made", shards, totals["train"]["blocks"])
    commit_part(run.store, part)
    write_plan(
        run.blocks, Plan({"block_tokens": block_tokens, "vocabulary": vocabulary}, {stream: (Planned(key, part.source, tuple(splits)),)})
    )
    Ledger(run.blocks).start({(stream, 0): part})
    beat(run.blocks, "done")
    (run.blocks / "manifest.json").write_text(json.dumps({"key": "made", "facts": {"streams": {stream: totals}}}))


def _ends(random: np.random.Generator, block_tokens: int, documents: int) -> npt.NDArray[np.uint32]:
    cuts = random.choice(np.arange(2, block_tokens - 1), documents - 1, replace=False)
    return np.array([*sorted(cuts), block_tokens], np.uint32)
