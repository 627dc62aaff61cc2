"""Bits per byte on held-out blocks during training: comparable across vocabularies, unlike perplexity."""

import math
from dataclasses import dataclass

import torch
from torch import distributed

from zhlm.blocks.read import BlockReader
from zhlm.objectives.causal import Batch, make_batch, sum_nats
from zhlm.records import Blocks


@dataclass(frozen=True)
class HeldOut:
    """One rank's part of a stream's held-out blocks."""

    stream: str
    batches: list[Batch]
    targets_per_byte: float
    """Of the whole held-out split: turns nats per target into bits per byte of text."""


def held_out(reader: BlockReader, streams: list[str], num_blocks: int, micro_blocks: int, rank: int, world_size: int) -> list[HeldOut]:
    """This rank's share of every stream's first held-out blocks. All ranks get equally many batches, because ZeRO-3 gathers weights in each
    forward pass; the surplus ones are mute."""
    parts = []
    for number, stream in enumerate(streams):
        blocks = reader.first(number, num_blocks)
        count = len(blocks.ends)
        passes = math.ceil(math.ceil(count / world_size) / micro_blocks)
        own = list(range(rank, count, world_size))
        batches = [_batch(blocks, own[i * micro_blocks : (i + 1) * micro_blocks]) for i in range(passes)]
        shards = reader.shards(number)
        # Every token but a document's first is predicted; the first is bos where the config asks for it, and then nothing is missed.
        targets = sum(s.tokens - s.documents for s in shards)
        parts.append(HeldOut(stream, batches, targets / max(1, sum(s.utf8_bytes for s in shards))))
    return parts


def _batch(blocks: Blocks, rows: list[int]) -> Batch:
    chosen = rows or [0]
    batch = make_batch(Blocks(blocks.ids_BT[chosen], [blocks.ends[r] for r in chosen]))
    return batch.mute_after(len(rows))


def validate(model: torch.nn.Module, parts: list[HeldOut], device: torch.device) -> dict[str, dict[str, float]]:
    """Bits per byte of each stream, the same on every rank. Collective."""
    was_training = model.training
    model.eval()
    scores: dict[str, dict[str, float]] = {}
    for part in parts:
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for batch in part.batches:
                sums[0] += sum_nats(model, batch.to(device)).double().cpu()
                sums[1] += batch.num_targets
        sums = sums.to(device)
        distributed.all_reduce(sums)
        nats, targets = sums.tolist()
        scores[part.stream] = {"bits_per_byte": nats / max(1.0, targets) / math.log(2) * part.targets_per_byte}
    model.train(was_training)
    return scores
