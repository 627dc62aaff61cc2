"""Blocks by their place in the order, straight from the store's memory-mapped files. Shape letters: B blocks, T block tokens.

A reader may overtake the packer. It then waits for as long as the packer shows signs of life, and says what for.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zhlm.blocks.mix import block_weights
from zhlm.blocks.order import Address, NotPacked, Order, StreamBlocks
from zhlm.blocks.store import Heartbeat, Ledger, Part, Plan, Shard, Split, open_shard, read_heartbeat, read_plan
from zhlm.config.schema import RunConfig
from zhlm.config.stages import differences
from zhlm.errors import DeadlineError, RunError
from zhlm.records import BLOCK_ENDS, BLOCK_IDS, Blocks
from zhlm.storage import MANIFEST, RETRY_S, Place, Run

OPEN_SHARDS = 64
POLL_S = 0.5
POLL_REMOTE_S = 3.0
POLL_SHARE = 4
"""A reader that waits sleeps so many times as long as it took to look, up to POLL_MOST_S."""
POLL_MOST_S = 10.0
PACKER_SILENCE_S = 60.0
"""A packer that shows no sign of life for so long is taken for dead."""
PACKER_START_S = 300.0
"""How long to wait for the first sign of life of a packer, which needs a machine and the tokenizer first."""

T = TypeVar("T")
Waiting = Callable[[str], None]


def training_reader(run: Run, config: RunConfig, waiting: Waiting | None = None, *, wait: bool = True) -> "BlockReader":
    """The reader of a run's training blocks, in the order of training.

    Without packing, blocks are not full: the weights, which are shares of tokens, become shares of blocks by each stream's fill, and the
    order has to wait until all is packed.

    Raises: RunError for blocks of another tokenizer or another packing than the config's.
    """
    weights = {s.name: s.weight for s in config.streams}
    reader = BlockReader(run, weights, "train", config.seed, waiting, wait=wait)
    reader.check_recipe(config)
    if config.pack.packing == "none" and len(weights) > 1:
        shards = {name: reader.shards(number) for number, name in enumerate(weights)}
        tokens_per_block = {name: sum(s.tokens for s in own) / sum(s.blocks for s in own) for name, own in shards.items()}
        return BlockReader(run, block_weights(weights, tokens_per_block), "train", config.seed, waiting, wait=wait)
    return reader


class BlockReader:
    """Reads one split of several streams. `waiting` is told what a call waits for; with `wait=False` it raises NotPacked instead.

    What a method needs and is not packed yet, it waits for.
    Raises: DeadlineError when the packer is silent; RunError when it failed, or ended without these blocks; StorageError for a bad shard.
    """

    def __init__(
        self,
        run: Run,
        weights: Mapping[str, float],
        split: Split,
        seed: int,
        waiting: Waiting | None = None,
        *,
        wait: bool = True,
    ) -> None:
        self._run, self.weights, self._split, self._seed = run, dict(weights), split, seed
        self._waiting, self._wait, self._stopped = waiting, wait, threading.Event()
        self._ledger, self._parts, self._checked = Ledger(run.blocks), dict[tuple[str, int], Part](), set[str]()
        self._rows = lru_cache(maxsize=OPEN_SHARDS)(self._open)
        self._plan: Plan | None = None
        self._plan = self._until(self._find_plan)
        self._numbers = {name: self._plan.of_split(name, split) for name in self.weights}
        self._refresh()

    def check_recipe(self, config: RunConfig) -> None:
        """Raises: RunError that names what the blocks were packed with and the config no longer says."""
        assert self._plan is not None, "the constructor waits for it"
        was, now = self._plan.recipe, _among(self._plan.recipe, config.pack.model_dump(mode="json"))
        now.pop("engine", None)  # the recipe has the one that was taken, the config may say auto
        vocab = self._run.of_stage("vocab") / MANIFEST
        if config.vocab is not None and "tokenizer" in was and vocab.exists():
            now["tokenizer"] = json.loads(vocab.read_text())["facts"]["tokenizer_digest"]
        changed = differences(_among(now, was), now)
        if changed:
            raise RunError(f"blocks: {self._run.blocks} was packed with other settings ({'; '.join(changed)}); run the pack stage again")

    def read(self, indices: Sequence[int]) -> Blocks:
        """The blocks at these places of the training order."""
        return self._gather([(a.stream, a.shard, a.row) for a in self.addresses(indices)])

    def addresses(self, indices: Sequence[int]) -> list[Address]:
        """Where the blocks at these places of the order are."""
        return self._until(lambda: [self.order[i] for i in indices])

    def source(self, index: int) -> str:
        """The corpus file behind a place of the order."""
        (address,) = self.addresses([index])
        return self.part(address.stream, address.shard).source

    def part(self, stream: int, shard: int) -> Part:
        """The part behind a shard, as far as it is packed."""
        name = list(self.weights)[stream]
        number = self._numbers[name][shard]
        part = self._parts.get((name, number))
        if part is None:
            raise NotPacked(name, (shard,), 1)
        return part

    def shards(self, stream: int) -> list[Shard]:
        """All shards of a stream, in the order of the plan; waits until the last one is packed."""
        return self._until(lambda: [self._shard(stream, shard) for shard in range(len(self._counts(stream)))])

    def first_shards(self, stream: int, count: int) -> list[Shard]:
        """The shards that hold the stream's first `count` blocks, as the first pass takes its shards; the same whenever asked."""
        return [self._shard(stream, shard) for shard in self._until(lambda: self._first(stream, count))]

    def first(self, stream: int, count: int) -> Blocks:
        """The first `count` blocks of a stream, shard by shard as the first pass takes them (all of them where there are fewer)."""
        shards = self._until(lambda: self._first(stream, count))
        rows = [(stream, shard, row) for shard in shards for row in range(self._shard(stream, shard).blocks)]
        return self._gather(rows[:count])

    def stop(self) -> None:
        """End a wait that is under way in another thread, and all later ones, with an error."""
        self._stopped.set()

    def _first(self, stream: int, count: int) -> list[int]:
        chosen, blocks = [], 0
        for shard in self.order.first_shards(stream):
            if blocks >= count:
                break
            blocks += self._shard(stream, shard).blocks
            chosen.append(shard)
        return chosen

    def _shard(self, stream: int, shard: int) -> Shard:
        return self.part(stream, shard).shards[self._split]

    def _counts(self, stream: int) -> tuple[int | None, ...]:
        name = list(self.weights)[stream]
        parts = [self._parts.get((name, number)) for number in self._numbers[name]]
        return tuple(None if part is None else part.shards[self._split].blocks for part in parts)

    # ---- waiting

    def _find_plan(self) -> Plan:
        plan = read_plan(self._run.blocks)
        if plan is None:
            raise NotPacked("", (), 0)
        missing = next((name for name in self.weights if name not in plan.streams), None)
        if missing is not None:
            raise RunError(
                f"blocks: the plan in {self._run.blocks} has no stream {missing}, only {', '.join(plan.streams)}; run the pack stage"
            )
        return plan

    def _refresh(self) -> None:
        """Take in what the ledger has now. A line of another plan, which the packer is about to replace, does not count."""
        if self._plan is None:
            return
        committed = self._ledger.read()
        planned = self._plan.streams
        self._parts = {
            (name, number): part
            for (name, number), part in committed.items()
            if name in planned and number < len(planned[name]) and planned[name][number].key == part.key
        }
        streams = [StreamBlocks(name, weight, self._counts(n)) for n, (name, weight) in enumerate(self.weights.items())]
        empty = next((s.name for s in streams if not any(blocks is None or blocks > 0 for blocks in s.shard_blocks)), None)
        if empty is not None:
            what = "held-out" if self._split == "validation" else "training"
            raise RunError(
                f"blocks: stream {empty} has no {what} block in {self._run.blocks}; give it more text, or change pack.validation_share"
            )
        self.order = Order(streams, self._seed)

    def _until(self, get: Callable[[], T]) -> T:
        """What `get` gives once all that it needs is packed."""
        watch: _PackerWatch | None = None
        while True:
            started_s = time.monotonic()
            # Looked at before the ledger: what a packer did before it said `done` is then seen.
            sign = read_heartbeat(self._run.blocks) if watch else None
            try:
                if watch:
                    self._refresh()
                return get()
            except NotPacked as missing:
                if not self._wait:
                    raise
                what = f"train waits for packing: {missing}" if missing.stream else "train waits for packing: it has no plan yet"
                watch = watch or _PackerWatch(self._run.blocks)
                watch.check(sign, len(self._parts), what)
            if self._waiting is not None:
                self._waiting(what)
            # The ledger of a large corpus takes a second to read: a reader that waits must not take the packer's CPU.
            pause_s = max(POLL_REMOTE_S if self._run.blocks.remote else POLL_S, POLL_SHARE * (time.monotonic() - started_s))
            if self._stopped.wait(min(pause_s, POLL_MOST_S)):
                raise DeadlineError(f"{what}; the reader was stopped") from None

    # ---- reading

    def _open(self, stream: int, shard: int) -> "_Rows":
        found = self._shard(stream, shard)
        rows = _Rows(open_shard(self._run.store, found, verify=found.sha256 not in self._checked))
        self._checked.add(found.sha256)
        return rows

    def _gather(self, places: Sequence[tuple[int, int, int]]) -> Blocks:
        rows = [self._rows(stream, shard)[row] for stream, shard, row in places]
        return Blocks(np.stack([ids for ids, _ in rows]), [ends for _, ends in rows])


def _among(known: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the values those that are known, at any depth."""
    return {
        k: _among(v, values[k]) if isinstance(v, dict) and isinstance(values[k], dict) else values[k]
        for k, v in known.items()
        if k in values
    }


class _PackerWatch:
    """Decides how long a wait is worth it. Only this process's clock counts: those of machines differ."""

    def __init__(self, blocks: Place) -> None:
        self._blocks = blocks
        self._seen: tuple[Heartbeat | None, int] | None = None
        self._since_s = time.monotonic()

    def check(self, sign: Heartbeat | None, num_packed: int, what: str) -> None:
        """Raises: RunError when the packer has ended, DeadlineError when it was silent for too long."""
        if sign is not None and sign.state == "failed":
            raise RunError(f"{what}, and packing failed: {sign.message}; mend that, then run the same command again")
        if sign is not None and sign.state == "done":
            raise RunError(f"{what}, and packing is over; run `zhlm blocks RUN --repair`, then the same command again")
        now_s = time.monotonic()
        if (sign, num_packed) != self._seen:
            self._seen, self._since_s = (sign, num_packed), now_s
        limit_s = PACKER_START_S if sign is None else PACKER_SILENCE_S
        limit_s += RETRY_S if self._blocks.remote else 0.0  # while the storage is away, nobody's sign of life gets through
        if now_s - self._since_s > limit_s:
            raise DeadlineError(
                f"{what}, and {self._blocks} has shown no sign of a packer for {limit_s:g} s; "
                "run the same command again, it goes on from there"
            )


class _Rows:
    """The rows of a shard, without a copy: its file holds several record batches, each of them one flat piece of memory."""

    def __init__(self, table: pa.Table) -> None:
        batches = table.to_batches()
        self._starts = np.cumsum([0, *(b.num_rows for b in batches)])
        block_tokens = table.schema.field(BLOCK_IDS).type.list_size
        self._ids_BT = [b.column(BLOCK_IDS).flatten().to_numpy().reshape(-1, block_tokens) for b in batches]
        self._ends = [b.column(BLOCK_ENDS).values.to_numpy() for b in batches]
        self._offsets = [b.column(BLOCK_ENDS).offsets.to_numpy() for b in batches]

    def __getitem__(self, row: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint32]]:
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        place = row - int(self._starts[batch])
        offsets = self._offsets[batch]
        return self._ids_BT[batch][place], self._ends[batch][offsets[place] : offsets[place + 1]]


class Prefetcher(Iterator[Blocks]):
    """Reads the blocks of the next steps in a thread, in order, while the caller computes; `depth` steps ahead.

    An error of the reader comes out of the step that it belongs to. A context manager, so that the thread never outlives its user.
    """

    def __init__(self, reader: BlockReader, steps: Iterator[Sequence[int]], depth: int = 4) -> None:
        self._reader, self._steps = reader, steps
        self._pool = ThreadPoolExecutor(1, "zhlm-read")
        self._ahead: deque[Future[Blocks]] = deque()
        for _ in range(depth):
            self._read_one_more()

    def __next__(self) -> Blocks:
        if not self._ahead:
            raise StopIteration
        blocks = self._ahead.popleft().result()
        self._read_one_more()
        return blocks

    def ready(self, timeout_s: float) -> bool:
        """Whether the next blocks, or the error in their place, are there; waits for them so long at most."""
        if self._ahead:
            with suppress(TimeoutError):
                self._ahead[0].exception(timeout_s)
        return not self._ahead or self._ahead[0].done()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, even while it waits for the packer."""
        self._reader.stop()
        self._pool.shutdown(cancel_futures=True)

    def _read_one_more(self) -> None:
        indices = next(self._steps, None)
        if indices is not None:
            self._ahead.append(self._pool.submit(self._reader.read, indices))
