"""A rank's batches, step after step: read and made ahead in threads, and given out when every rank has its own.

A rank may have to wait for the packer for an hour, and a collective may not wait for a rank that long. So while one waits, all meet every
few seconds; they go on when all have their blocks, and give up together when one of them cannot get them.
"""

import time
from collections.abc import Callable, Iterator
from itertools import accumulate, chain
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import distributed

from zhlm.blocks.read import BlockReader, Prefetcher
from zhlm.objectives.ahead import Ahead
from zhlm.objectives.batch import Batch, BatchMaker, filled_up
from zhlm.records import Blocks

MEET_S = 2.0
"""While one waits for blocks, how long until all meet again."""

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
        self._device = device
        self._blocks = Prefetcher(reader, (own for step in steps if (own := _flat(deal(step)))))
        # Dense masks and whole words take their time. Only one step ahead: with masks, batches are large.
        self._ahead = Ahead(self._make(deal, steps, micro_blocks, objective))
        self.waited_s = 0.0
        """For blocks, in all steps so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._blocks.close()
        self._ahead.close()

    def take(self, waits: Callable[[], None], asked: Callable[[], str]) -> tuple[Blocks | None, list[Batch], int, int]:
        """This rank's blocks of the next step (None: it has none), the batch of each pass, and the targets and tokens of all ranks.

        `waits` is called again and again while this rank's blocks are not there; `asked` says why the workers should leave, if they should.
        Collective.
        Raises: what reading or making raised; FailedElsewhere where another rank's did; Regroup where any rank was asked to leave.
        """
        blocks: Blocks | None = None
        batches: list[Batch] = []
        there, problem = False, None
        while True:
            started_s = time.monotonic()
            if not there:
                try:
                    there = self._ahead.ready(MEET_S)
                    blocks, batches = next(self._ahead) if there else (None, [])
                except Exception as error:
                    there, problem = False, error
            self.waited_s += time.monotonic() - started_s
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

    def _make(self, deal: Deal, steps: range, micro_blocks: int, objective: BatchMaker) -> Iterator[tuple[Blocks | None, list[Batch]]]:
        """Blocks and batches, step by step. With more ranks than blocks in a step, some ranks never have any."""
        for dealt in map(deal, steps):
            blocks = next(self._blocks) if _flat(dealt) else None
            parts = zip(accumulate(map(len, dealt)), dealt, strict=True)
            yield blocks, [filled_up(objective, _part(blocks, end - len(own), end), own, micro_blocks) for end, own in parts]


def _part(blocks: Blocks | None, start: int, end: int) -> Blocks:
    return _NO_BLOCKS if blocks is None else Blocks(blocks.ids_BT[start:end], blocks.ends[start:end])


def _flat(dealt: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(dealt))
