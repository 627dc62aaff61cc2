"""Batches in their order, waited for together, and a trace of what was read."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import write_blocks
from zhlm.blocks import read
from zhlm.blocks.read import BlockReader
from zhlm.blocks.store import LEDGER, beat
from zhlm.errors import DeadlineError, RunError
from zhlm.objectives.causal import IGNORED, make_batch
from zhlm.records import Blocks
from zhlm.storage import Place, Run
from zhlm.train.feed import Feed, filled_up
from zhlm.train.metrics import BlockTrace
from zhlm.train.schedule import deal, share_of

CPU = torch.device("cpu")
WEIGHTS = {"zh": 0.75, "en": 0.25}


pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write_blocks(tmp_path / "run", ["zh", "en"])
    return Run(Place(tmp_path / "run"))


def feed_of(reader: BlockReader, rank: int = 0, world_size: int = 1, *, batch: int = 6, steps: range = range(9)) -> Feed:
    share = share_of(batch, 4, world_size)
    return Feed(reader, lambda step: deal(step, rank, world_size, batch, share), steps, share.micro_blocks, CPU)


def never() -> None:
    raise AssertionError("nothing is waited for")


def test_steps_come_in_order_with_the_blocks_of_the_order(run: Run) -> None:
    reader = BlockReader(run, WEIGHTS, "train", 1)
    with feed_of(BlockReader(run, WEIGHTS, "train", 1), steps=range(3, 9)) as feed:
        for step in range(3, 9):
            blocks, batches, num_targets, num_tokens = feed.take(step, never, str)
            expected = reader.read(range(step * 6, step * 6 + 6))
            assert blocks is not None and blocks.ids_BT.tolist() == expected.ids_BT.tolist()
            whole = make_batch(expected)
            assert torch.cat([b.input_ids_BT for b in batches]).tolist() == whole.input_ids_BT.tolist()
            assert (num_targets, num_tokens) == (whole.num_targets, whole.num_tokens)
    assert 0 <= feed.waited_s < 5


def test_a_rank_without_blocks_and_a_short_pass_learn_nothing(run: Run) -> None:
    with feed_of(BlockReader(run, WEIGHTS, "train", 1), 2, 3, batch=2) as feed:
        blocks, (batch,), num_targets, num_tokens = feed.take(0, never, str)
        assert blocks is None and (num_targets, num_tokens) == (0, 0) and set(batch.targets_BT.flatten().tolist()) == {IGNORED}
    one = Blocks(np.array([[5, 6, 7, 8]]), [np.array([3], np.uint32)])
    filled = filled_up(one, 3)
    assert filled.input_ids_BT.tolist() == [[5, 6, 7, 8], [0] * 4, [0] * 4]
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
        feed.take(0, packs_later, str)
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
        feed.take(0, fails, str)
    assert time.monotonic() - started_s < 10


def test_the_thread_ends_with_the_feed_even_while_it_waits(run: Run) -> None:
    unpacked(run)
    before = threading.active_count()
    with feed_of(BlockReader(run, WEIGHTS, "train", 1)):
        assert threading.active_count() == before + 1
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


def test_a_trace_that_cannot_be_written_ends_the_whole_group(run: Run) -> None:
    """An error of the user's kind ends one rank quietly, and this one did not come to all of them."""
    (run.folder / "trace").path.write_text("a file where the folder should be")
    with pytest.raises(RuntimeError, match="File exists"):
        BlockTrace(run.folder / "trace", 0, 2, 0, BlockReader(run, WEIGHTS, "train", 1)).append(1, [], None)
