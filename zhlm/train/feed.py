"""A rank's batches, step after step: read ahead in a thread, and given out when every rank has its own.

A rank may have to wait for the packer for an hour, and a collective may not wait for a rank that long. So while one waits, all meet every
few seconds; they go on when all have their blocks, and give up together when one of them cannot get them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import distributed

from zhlm.blocks.read import BlockReader, Prefetcher
from zhlm.objectives.batch import Batch, BatchMaker
from zhlm.records import Blocks

MEET_S = 2.0
"""While one waits for blocks, how long until all meet again."""

_ONE_TOKEN = np.array([1], np.uint32)
_NO_BLOCKS = Blocks(np.zeros((0, 1), np.int64), [])

Deal = Callable[[int], list[list[int]]]
"""Step -> the block indices of each pass of this rank."""


class FailedElsewhere(Exception):  # noqa: N818 - told by the rank that it happened to
    """Another rank cannot get its blocks."""


class Regroup(Exception):  # noqa: N818 - no failure: raised by all ranks alike, before a step
    """The workers are asked to leave; the message says why. Other ones, more or fewer, go on from here."""


class Feed:
    """Gives the batches of each step in turn. A context manager, so that no thread goes on reading when training has ended."""

    def __init__(
        self, reader: BlockReader, deal: Deal, steps: range, micro_blocks: int, objective: BatchMaker, device: torch.device
    ) -> None:
        self._deal, self._micro_blocks, self._objective, self._device = deal, micro_blocks, objective, device
        # With more ranks than blocks in a step, some ranks never have any.
        self._ahead = Prefetcher(reader, (own for step in steps if (own := _flat(deal(step)))))
        self.waited_s = 0.0
        """For blocks, in all steps so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ahead.close()

    def take(self, step: int, waits: Callable[[], None], asked: Callable[[], str]) -> tuple[Blocks | None, list[Batch], int, int]:
        """This rank's blocks of the next step (None: it has none), the batch of each pass, and the targets and tokens of all ranks.

        `waits` is called again and again while this rank's blocks are not there; `asked` says why the workers should leave, if they should.
        Collective.
        Raises: what reading raised; FailedElsewhere where another rank's reading did; Regroup where any rank was asked to leave.
        """
        dealt = self._deal(step)
        blocks: Blocks | None = None
        there, problem = not _flat(dealt), None
        while True:
            started_s = time.monotonic()
            if not there:
                try:
                    there = self._ahead.ready(MEET_S)
                    blocks = next(self._ahead) if there else None
                except Exception as error:
                    there, problem = False, error
            self.waited_s += time.monotonic() - started_s
            batches = list(self._batches(dealt, blocks)) if there else []
            own = [sum(b.num_targets for b in batches), sum(b.num_tokens for b in batches), int(not there), int(problem is not None)]
            reason = asked()
            started_s = time.monotonic()
            counts = torch.tensor([*own, int(bool(reason))], device=self._device)
            distributed.all_reduce(counts)
            num_targets, num_tokens, num_waiting, num_failed, num_asked = (int(c) for c in counts)
            if num_failed:
                raise problem or FailedElsewhere
            if num_asked:
                raise Regroup(reason or "another rank was asked")
            if not num_waiting:
                return blocks, batches, num_targets, num_tokens
            self.waited_s += time.monotonic() - started_s
            if not there:
                waits()

    def _batches(self, dealt: list[list[int]], blocks: Blocks | None) -> Iterator[Batch]:
        start = 0
        for indices in dealt:
            stop = start + len(indices)
            own = Blocks(blocks.ids_BT[start:stop], blocks.ends[start:stop]) if blocks is not None else _NO_BLOCKS
            yield filled_up(self._objective, own, indices, self._micro_blocks)
            start = stop


def filled_up(objective: BatchMaker, blocks: Blocks, keys: Sequence[int], micro_blocks: int) -> Batch:
    """A batch of so many rows, those behind the blocks mute: one token of nothing to learn. `keys`: of the blocks, see `BatchMaker`."""
    missing = micro_blocks - len(blocks.ends)
    ids_BT = np.pad(blocks.ids_BT, ((0, missing), (0, 0)))
    filled = Blocks(ids_BT, [*blocks.ends, *([_ONE_TOKEN] * missing)])
    return objective.make_batch(filled, [*keys, *([0] * missing)]).mute_after(len(blocks.ends))


def _flat(dealt: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(dealt))
