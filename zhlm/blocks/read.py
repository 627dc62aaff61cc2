"""Blocks by their place in the order, straight from the store's memory-mapped files. Shape letters: B blocks, T block tokens."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa

from zhlm.blocks.order import Address, Order, StreamBlocks
from zhlm.blocks.store import Shard, open_shard, read_ledger
from zhlm.errors import RunError
from zhlm.records import BLOCK_ENDS, BLOCK_IDS, Blocks
from zhlm.storage import Place

OPEN_SHARDS = 64


class BlockReader:
    """Reads one split of several streams."""

    def __init__(self, blocks: Place, weights: dict[str, float], split: str, seed: int) -> None:
        self._splits = [blocks / name / split for name in weights]
        self._shards: list[list[Shard]] = [read_ledger(s) for s in self._splits]
        for place, shards in zip(self._splits, self._shards, strict=True):
            if not any(s.blocks for s in shards):
                raise RunError(f"blocks: {place} holds no block; run the pack stage, or give that stream more text")
        streams = [
            StreamBlocks(name, weight, tuple(s.blocks for s in shards))
            for (name, weight), shards in zip(weights.items(), self._shards, strict=True)
        ]
        self.order = Order(streams, seed)
        self._table = lru_cache(maxsize=OPEN_SHARDS)(self._open)

    def read(self, indices: Sequence[int]) -> Blocks:
        """The blocks at these places of the training order."""
        return self._gather([self.order[i] for i in indices])

    def first(self, stream: int, count: int) -> Blocks:
        """The first `count` blocks of a stream in ledger order (all of them where there are fewer): for validation."""
        rows = [(n, row) for n, shard in enumerate(self._shards[stream]) for row in range(shard.blocks)]
        return self._gather([Address(stream, 0, shard, row) for shard, row in rows[:count]])

    def source(self, index: int) -> str:
        """The corpus file behind a place of the order."""
        address = self.order[index]
        return self._shards[address.stream][address.shard].source

    def shards(self, stream: int) -> list[Shard]:
        return self._shards[stream]

    def _open(self, stream: int, shard: int) -> pa.Table:
        return open_shard(self._splits[stream], self._shards[stream][shard])

    def _gather(self, addresses: Sequence[Address]) -> Blocks:
        ids, ends = [], []
        for a in addresses:
            row = self._table(a.stream, a.shard).slice(a.row, 1)
            ids.append(row.column(BLOCK_IDS).combine_chunks().flatten().to_numpy())
            ends.append(row.column(BLOCK_ENDS).combine_chunks().flatten().to_numpy())
        return Blocks(np.stack(ids), ends)
