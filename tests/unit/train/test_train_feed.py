"""Batches in their order, waited for together, and a trace of what was read."""

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config

from conftest import write_blocks
from zhlm.blocks import read
from zhlm.blocks.read import BlockReader
from zhlm.blocks.store import LEDGER, beat
from zhlm.config.objective import PrefixConfig
from zhlm.errors import ConfigError, DeadlineError, RunError, StorageError
from zhlm.objectives.batch import IGNORED, Batch, BatchMaker, filled_up
from zhlm.objectives.causal import Causal
from zhlm.objectives.prefix import Prefix
from zhlm.records import Blocks
from zhlm.storage import Place, Run
from zhlm.train.feed import Feed
from zhlm.train.metrics import BlockTrace
from zhlm.train.schedule import deal, share_of
from zhlm.train.validate import held_out

CPU = torch.device("cpu")
CAUSAL = Causal()
WEIGHTS = {"zh": 0.75, "en": 0.25}


pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write_blocks(tmp_path / "run", ["zh", "en"])
    return Run(Place(tmp_path / "run"))


def feed_of(
    reader: BlockReader, rank: int = 0, world_size: int = 1, *, batch: int = 6, steps: range = range(9), objective: BatchMaker = CAUSAL
) -> Feed:
    share = share_of(batch, 4, world_size)
    return Feed(reader, lambda step: deal(step, rank, world_size, batch, share), steps, share.micro_blocks, objective, CPU)


def never() -> None:
    raise AssertionError("nothing is waited for")


def test_steps_come_in_order_with_the_blocks_of_the_order(run: Run) -> None:
    reader = BlockReader(run, WEIGHTS, "train", 1)
    with feed_of(BlockReader(run, WEIGHTS, "train", 1), steps=range(3, 9)) as feed:
        for step in range(3, 9):
            blocks, batches, num_targets, num_tokens = feed.take(never, str)
            expected = reader.read(range(step * 6, step * 6 + 6))
            assert blocks is not None and blocks.ids_BT.tolist() == expected.ids_BT.tolist()
            whole = CAUSAL.make_batch(expected, range(6))
            assert torch.cat([b.inputs["input_ids"] for b in batches]).tolist() == whole.inputs["input_ids"].tolist()
            assert (num_targets, num_tokens) == (whole.num_targets, whole.num_tokens)
    assert 0 <= feed.waited_s < 5


def test_a_rank_without_blocks_and_a_short_pass_learn_nothing(run: Run) -> None:
    with feed_of(BlockReader(run, WEIGHTS, "train", 1), 2, 3, batch=2) as feed:
        blocks, (batch,), num_targets, num_tokens = feed.take(never, str)
        assert blocks is None and (num_targets, num_tokens) == (0, 0) and set(batch.targets_BT.flatten().tolist()) == {IGNORED}
    one = Blocks(np.array([[5, 6, 7, 8]]), [np.array([3], np.uint32)])
    filled = filled_up(CAUSAL, one, [4], 3)
    assert filled.inputs["input_ids"].tolist() == [[5, 6, 7, 8], [0] * 4, [0] * 4]
    assert filled.targets_BT.tolist() == [[6, 7, IGNORED, IGNORED], [IGNORED] * 4, [IGNORED] * 4]
    assert (filled.num_targets, filled.num_tokens) == (2, 3)


def unpacked(run: Run) -> str:
    """Takes away all but the first three parts: what the ledger held."""
    ledger = (run.blocks / LEDGER).path
    whole = ledger.read_text(encoding="utf-8")
    ledger.write_text("".join(whole.splitlines(keepends=True)[:3]), encoding="utf-8")
    beat(run.blocks, "packing")
    return whole


def test_training_waits_for_the_packer_and_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zhlm.train.feed.MEET_S", 0.1)
    monkeypatch.setattr(read, "POLL_S", 0.05)
    whole = unpacked(run)
    told: list[str] = []
    waits = 0

    def packs_later() -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            (run.blocks / LEDGER).write_text(whole)

    with feed_of(BlockReader(run, WEIGHTS, "train", 1, told.append)) as feed:
        feed.take(packs_later, str)
        assert feed.waited_s > 0.2
    assert waits >= 3 and "train waits for packing: stream en has 0 of the 1 shards" in told[0]


@pytest.mark.parametrize("silent", [False, True])
def test_a_packer_that_fails_or_dies_ends_the_wait_with_its_name(run: Run, silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zhlm.train.feed.MEET_S", 0.1)
    monkeypatch.setattr(read, "POLL_S", 0.05)
    monkeypatch.setattr(read, "PACKER_SILENCE_S", 0.5)
    unpacked(run)

    def fails() -> None:
        if not silent:
            beat(run.blocks, "failed", "pack: zh.txt line 3 is broken")

    started_s = time.monotonic()
    with (
        feed_of(BlockReader(run, WEIGHTS, "train", 1)) as feed,
        pytest.raises(
            DeadlineError if silent else RunError, match="no sign of a packer for 0.5 s" if silent else "zh.txt line 3 is broken"
        ),
    ):
        feed.take(fails, str)
    assert time.monotonic() - started_s < 10


def test_the_thread_ends_with_the_feed_even_while_it_waits(run: Run) -> None:
    unpacked(run)
    before = threading.active_count()
    with feed_of(BlockReader(run, WEIGHTS, "train", 1)):
        assert threading.active_count() == before + 2, "one reads, one makes"
    assert threading.active_count() == before


def test_the_trace_names_each_block_that_was_read(run: Run) -> None:
    reader = BlockReader(run, WEIGHTS, "train", 1)
    trace = BlockTrace(run.folder / "trace", 1, 2, 4, reader)
    for step, indices in ((5, [24, 25]), (6, [30])):
        trace.append(step, indices, reader.read(indices))
    trace.append(7, [], None)
    lines = [json.loads(line) for line in (run.folder / "trace" / "rank_1.jsonl").read_text().splitlines()]
    assert [(line["step"], line["attempt"], line["workers"], len(line["blocks"])) for line in lines] == [
        (5, 4, 2, 2),
        (6, 4, 2, 1),
        (7, 4, 2, 0),
    ]
    rows = [row for line in lines for row in line["blocks"]]
    assert [row[0] for row in rows] == [24, 25, 30] and {row[1] for row in rows} <= {*WEIGHTS}
    places = [reader.addresses([row[0]])[0] for row in rows]
    assert [row[2:4] for row in rows] == [[reader.part(a.stream, a.shard).key[:12], a.row] for a in places]
    assert len({row[4] for row in rows}) == 3, "different blocks have different checksums"


def test_a_trace_waits_while_storage_is_away(run: Run) -> None:
    """Its steps are told when it is back; a save asks for them before it counts, and hears why they are not there."""
    trace = BlockTrace(run.folder / "trace", 0, 2, 0, BlockReader(run, WEIGHTS, "train", 1))
    assert trace.append(1, [], None) == ""
    folder, away = (run.folder / "trace").path, (run.folder / "away").path
    folder.rename(away)
    folder.write_text("a file where the folder should be", encoding="utf-8")
    assert "File exists" in trace.append(2, [], None) and "File exists" in trace.append(3, [], None)
    with pytest.raises(StorageError, match="File exists"):
        trace.catch_up()
    folder.unlink()
    away.rename(folder)
    trace.catch_up()
    trace.catch_up()
    assert [json.loads(line)["step"] for line in (folder / "rank_0.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_line_that_was_cut_off_is_ended(run: Run) -> None:
    place = run.folder / "trace" / "rank_0.jsonl"
    place.write_text('{"step": 1}\n{"st')
    for step in (2, 3):
        BlockTrace(run.folder / "trace", 0, 1, 1, BlockReader(run, WEIGHTS, "train", 1)).append(step, [], None)
    lines = place.read_text().splitlines()
    assert lines[:2] == ['{"step": 1}', '{"st'] and [json.loads(line)["step"] for line in lines[2:]] == [2, 3]


class Failing(Causal):
    """Cannot make anything of one block of the order."""

    def make_batch(self, blocks: Blocks, keys: Sequence[int]) -> Batch:
        if 9 in keys:
            raise ConfigError("objective: block 9 has too many spans; set another one")
        return super().make_batch(blocks, keys)


def test_what_cannot_be_made_fails_in_its_own_step(run: Run) -> None:
    with feed_of(BlockReader(run, WEIGHTS, "train", 1), objective=Failing()) as feed:
        assert feed.take(never, str)[3] > 0
        time.sleep(0.2)  # by now the next step has failed
        with pytest.raises(ConfigError, match="block 9"):
            feed.take(never, str)


class Slow(Causal):
    """Takes its time; notes which steps it has made."""

    def make_batch(self, blocks: Blocks, keys: Sequence[int]) -> Batch:
        time.sleep(0.1)
        made.append(keys[0] // 6)
        return super().make_batch(blocks, keys)


made: list[int] = []


def test_batches_are_made_while_the_step_before_is_trained_on_and_not_earlier(run: Run) -> None:
    made.clear()
    with feed_of(BlockReader(run, WEIGHTS, "train", 1), objective=Slow()) as feed:
        feed.take(never, str)
        time.sleep(0.8)  # as long as a step would take
        assert made == [0, 0, 1, 1]
        waited_s = feed.waited_s
        feed.take(never, str)
        assert feed.waited_s - waited_s < 0.1 and made[:4] == [0, 0, 1, 1]
    assert len(made) <= 6, "and no further when training has ended"


class Noting(Causal):
    """Notes the keys that it is asked with."""

    def make_batch(self, blocks: Blocks, keys: Sequence[int]) -> Batch:
        assert len(blocks.ends) == len(keys)
        noted.append(list(keys))
        return super().make_batch(blocks, keys)


noted: list[list[int]] = []


def test_a_row_is_keyed_by_its_place_in_the_order_whoever_reads_it(run: Run) -> None:
    by_rank = []
    for world_size in (1, 2, 3):
        noted.clear()
        for rank in range(world_size):
            with feed_of(BlockReader(run, WEIGHTS, "train", 1), rank, world_size, steps=range(4, 6), objective=Noting()) as feed:
                for _ in range(2):
                    feed.take(never, str)
        by_rank.append(sorted(key for keys in noted for key in keys))
    assert by_rank == [list(range(24, 36))] * 3


def test_held_out_rows_are_keyed_by_their_place_from_the_end_and_mute_ones_by_any(run: Run) -> None:
    found = []
    for world_size, micro in ((1, 5), (2, 2), (3, 1)):
        noted.clear()
        reader = BlockReader(run, WEIGHTS, "validation", 1)
        for rank in range(world_size):
            (part,) = held_out(reader, ["zh"], 5, micro, Noting(), rank, world_size)
            assert len([*part.batches()]) == len(part.passes)
        found.append(sorted(key for keys in noted for key in keys if key))
    assert found == [[-5, -4, -3, -2, -1]] * 3


def test_what_is_drawn_for_a_block_does_not_depend_on_who_reads_it(run: Run) -> None:
    prefix = Prefix.of(PrefixConfig(), None, GPT2Config(), 7)
    by_world = []
    for world_size in (1, 2, 5):
        rows: dict[int, list[list[int]]] = {}
        for rank in range(world_size):
            with feed_of(BlockReader(run, WEIGHTS, "train", 1), rank, world_size, steps=range(2), objective=prefix) as feed:
                for step in range(2):
                    _, batches, _, _ = feed.take(never, str)
                    own = deal(step, rank, world_size, 6, share_of(6, 4, world_size))
                    for indices, batch in zip(own, batches, strict=True):
                        for place, index in enumerate(indices):
                            sees = batch.inputs["attention_mask"][place, 0].sum(-1)
                            rows[index] = [batch.inputs["input_ids"][place].tolist(), batch.targets_BT[place].tolist(), sees.tolist()]
        by_world.append(rows)
    assert len(by_world[0]) == 12 and by_world[0] == by_world[1] == by_world[2]
    assert len({repr(targets) for _, targets, _ in by_world[0].values()}) == 12
