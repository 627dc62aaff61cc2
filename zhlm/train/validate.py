"""Bits per byte on held-out blocks during training: comparable across vocabularies, unlike perplexity.

On targets: what one of them costs stands for each token of the text, also where the objective predicts only some.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import distributed

from zhlm.blocks.read import BlockReader
from zhlm.config.schema import StreamConfig
from zhlm.objectives.batch import Batch, BatchMaker, filled_up, sum_nats
from zhlm.records import Blocks


@dataclass(frozen=True)
class HeldOut:
    """One rank's part of a stream's held-out blocks."""

    stream: str
    passes: list[tuple[Blocks, list[int]]]
    """Blocks of each forward pass, with their keys."""
    micro_blocks: int
    objective: BatchMaker
    targets_per_byte: float
    """Of the shards that these blocks are from: turns nats per target into bits per byte of text."""

    def batches(self) -> Iterator[Batch]:
        """The same ones whenever asked; not kept, for with masks they are large."""
        for blocks, keys in self.passes:
            yield filled_up(self.objective, blocks, keys, self.micro_blocks)


def held_out(
    reader: BlockReader, streams: list[str], num_blocks: int, micro_blocks: int, objective: BatchMaker, rank: int, world_size: int
) -> list[HeldOut]:
    """This rank's share of every stream's first held-out blocks, the same inputs and targets in each run. All ranks get equally many
    batches, because ZeRO-3 gathers weights in each forward pass; the surplus ones are mute."""
    parts = []
    for number, stream in enumerate(streams):
        blocks = reader.first(number, num_blocks)
        count = len(blocks.ends)
        passes = math.ceil(math.ceil(count / world_size) / micro_blocks)
        own = list(range(rank, count, world_size))
        dealt = [own[i * micro_blocks : (i + 1) * micro_blocks] for i in range(passes)]
        held = [(Blocks(blocks.ids_BT[rows], [blocks.ends[r] for r in rows]), [-1 - r for r in rows]) for rows in dealt]
        # Only those that these blocks are from: training does not wait for the others to be packed.
        shards = reader.first_shards(number, num_blocks)
        # Every token but a document's first is predicted; the first is bos where the config asks for it, and then nothing is missed.
        targets = sum(s.tokens + s.cut_tokens - s.documents for s in shards)
        parts.append(HeldOut(stream, held, micro_blocks, objective, targets / max(1, sum(s.utf8_bytes for s in shards))))
    return parts


def validate(
    model: torch.nn.Module,
    parts: list[HeldOut],
    device: torch.device,
    nats_of: Callable[[torch.nn.Module, Batch], torch.Tensor] = sum_nats,
) -> dict[str, dict[str, float]]:
    """Bits per byte of each stream, the same on every rank. Collective."""
    was_training = model.training
    model.eval()
    scores: dict[str, dict[str, float]] = {}
    for part in parts:
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for batch in part.batches():
                sums[0] += nats_of(model, batch.to(device)).double().cpu()
                sums[1] += batch.num_targets
        sums = sums.to(device)
        distributed.all_reduce(sums)
        nats, targets = sums.tolist()
        scores[part.stream] = {"bits_per_byte": nats / max(1.0, targets) / math.log(2) * part.targets_per_byte}
    model.train(was_training)
    return scores


def new_bits_per_byte(scores: Mapping[str, Mapping[str, float]], streams: Iterable[StreamConfig]) -> float:
    """What says which of two checkpoints is better: the mean over the streams to learn, whatever their weights."""
    new = [scores[s.name]["bits_per_byte"] for s in streams if s.role == "new" and s.name in scores]
    return math.fsum(new) / len(new)
