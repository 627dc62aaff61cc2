"""Is the store what the ledger says? And what to throw away where it is not. Shape letters: B blocks, T block tokens, E document ends."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from zhlm.blocks.store import Ledger, Part, Plan, Shard, delete_part, open_shard
from zhlm.errors import StorageError
from zhlm.records import BLOCK_ENDS, BLOCK_IDS
from zhlm.storage import MANIFEST, Place, Run

Parts = Mapping[tuple[str, int], Part]


@dataclass(frozen=True)
class Bad:
    """A shard that cannot be trained on."""

    place: tuple[str, int]
    """Stream and number of its part in the plan."""
    part: Part
    problem: str


def of_plan(plan: Plan, committed: Parts) -> dict[tuple[str, int], Part]:
    """The committed parts that are the plan's; what an earlier plan left in the ledger does not count."""
    keys = {(name, number): part.key for name, parts in plan.streams.items() for number, part in enumerate(parts)}
    return {place: part for place, part in committed.items() if keys.get(place) == part.key}


def bad_shards(store: Place, parts: Parts, vocabulary: int | None, advance: Callable[[], None]) -> Iterator[Bad]:
    """Read every shard again; `advance` is called after each part."""
    for place, part in parts.items():
        for shard in part.shards.values():
            problem = problem_of(store, shard, vocabulary)
            if problem is not None:
                yield Bad(place, part, problem)
        advance()


def problem_of(store: Place, shard: Shard, vocabulary: int | None) -> str | None:
    """What is wrong with a shard, as one line that names its file; None when it is sound."""
    try:
        table = open_shard(store, shard)
    except StorageError as error:
        return str(error).removeprefix("blocks: ").partition("; ")[0]
    tokens = 0
    for batch in table.to_batches():
        problem = _problem_of_batch(batch, vocabulary)
        if problem is not None:
            return f"{store / shard.file} {problem}"
        ends = batch.column(BLOCK_ENDS)
        tokens += int(ends.values.to_numpy()[ends.offsets.to_numpy()[1:] - 1].sum(dtype=np.int64))
    return None if tokens == shard.tokens else f"{store / shard.file} holds {tokens} tokens, the ledger says {shard.tokens}"


def _problem_of_batch(batch: pa.RecordBatch, vocabulary: int | None) -> str | None:
    ids, ends_column = batch.column(BLOCK_IDS), batch.column(BLOCK_ENDS)
    largest = int(ids.flatten().to_numpy().max(initial=0))
    if vocabulary is not None and largest >= vocabulary:
        return f"has the id {largest}, the vocabulary has {vocabulary} entries"
    offsets, ends_E = ends_column.offsets.to_numpy(), ends_column.values.to_numpy().astype(np.int64)
    if (np.diff(offsets) == 0).any():
        return "has a block without a document"
    steps_E = np.diff(ends_E, prepend=0)
    steps_E[offsets[:-1]] = ends_E[offsets[:-1]]  # each block counts from 0
    if (steps_E <= 0).any() or (ends_E > ids.type.list_size).any():
        return f"has document ends that do not ascend within {ids.type.list_size} tokens"
    return None


def repair(run: Run, plan: Plan, vocabulary: int | None, advance: Callable[[], None]) -> list[str]:
    """Throw away what is damaged, so that the next run packs just that again. Returns what was done, a line each."""
    ledger = Ledger(run.blocks)
    committed, done = ledger.sound()
    done = [f"ledger: {problem}, removed" for problem in done]
    parts = of_plan(plan, committed)
    bad = list(bad_shards(run.store, parts, vocabulary, advance))
    for each in bad:
        delete_part(run.store, each.part.key)
        done.append(f"deleted: {each.problem} (from {each.part.source})")
    missing = sum(map(len, plan.streams.values())) - len(parts)
    if missing and (run.blocks / MANIFEST).exists():
        done.append(f"ledger: {missing} parts of the plan are not in it, although packing was finished")
    if done:
        gone = {each.part.key for each in bad}
        ledger.start({place: part for place, part in parts.items() if part.key not in gone})
        (run.blocks / MANIFEST).delete()
    return done
