"""A small block store, part by part: what the tests of this room pack."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zhlm.blocks.store import Ledger, Part, Plan, Planned, Split, commit_part, write_plan, writing
from zhlm.records import Blocks
from zhlm.storage import Place, Run

T = 8
VOCABULARY = 300


def some_blocks(count: int, seed: int, vocabulary: int = VOCABULARY, block_tokens: int = T) -> Blocks:
    random = np.random.default_rng(seed)
    ends = [np.array([3, int(random.integers(4, block_tokens + 1))], np.uint32) for _ in range(count)]
    return Blocks(random.integers(0, vocabulary, (count, block_tokens)), ends)


def pack_part(store: Place, key: str, blocks: Mapping[Split, Sequence[Blocks]], source: str = "f", vocabulary: int = VOCABULARY) -> Part:
    """Write and commit a part whose splits hold these batches of blocks."""
    tokens = {s: sum(int(e[-1]) for b in batches for e in b.ends) for s, batches in blocks.items()}
    block_tokens = next((b.ids_BT.shape[1] for batches in blocks.values() for b in batches), T)
    shards = {}
    with writing(store, key, list(blocks), block_tokens, vocabulary) as writers:
        for split, batches in blocks.items():
            for batch in batches:
                writers[split].write(batch)
            shards[split] = writers[split].close(documents=2, tokens=tokens[split], utf8_bytes=40, characters=20)
    part = Part(key, source, shards, documents=2 * len(shards))
    commit_part(store, part)
    return part


class Packer:
    """A run whose parts are packed one by one, on demand: streams of shards of so many blocks, each in two record batches."""

    def __init__(self, folder: Path, streams: Mapping[str, Sequence[int]], split: Split = "train") -> None:
        self.run, self.split = Run(Place(folder)), split
        self.blocks = {
            (name, n): some_blocks(count, seed=100 * s + n)
            for s, (name, counts) in enumerate(streams.items())
            for n, count in enumerate(counts)
        }
        self.planned = {
            name: tuple(Planned(f"{s:02}{n:04}", f"语料/{name}-{n}.txt", (split,)) for n in range(len(counts)))
            for s, (name, counts) in enumerate(streams.items())
        }
        self.ledger = Ledger(self.run.blocks)

    def plan(self) -> "Packer":
        write_plan(self.run.blocks, Plan({"block_tokens": T, "vocabulary": VOCABULARY}, self.planned))
        self.run.blocks.path.mkdir(exist_ok=True)
        return self

    def pack(self, *places: tuple[str, int]) -> "Packer":
        """These parts, or all of them."""
        for name, n in places or self.blocks:
            whole, planned = self.blocks[name, n], self.planned[name][n]
            half = len(whole.ends) // 2
            batches = [Blocks(whole.ids_BT[:half], whole.ends[:half]), Blocks(whole.ids_BT[half:], whole.ends[half:])]
            self.ledger.append(name, n, pack_part(self.run.store, planned.key, {self.split: batches}, planned.source))
        return self
