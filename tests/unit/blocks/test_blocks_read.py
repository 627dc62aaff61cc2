"""Blocks come in the order's order, whether they were packed before or while they are read; a dead packer is noticed."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from blocks_store import Packer, T

from conftest import run_data, write_blocks
from zhlm.blocks import read
from zhlm.blocks.order import NotPacked, Order, StreamBlocks
from zhlm.blocks.read import BlockReader, Prefetcher, training_reader
from zhlm.blocks.store import Ledger, Plan, beat, write_plan
from zhlm.config.schema import RunConfig
from zhlm.errors import DeadlineError, RunError, StorageError
from zhlm.records import Blocks
from zhlm.storage import Place, Run

STREAMS = {"zh": [4, 0, 3, 5, 2, 1, 1, 6, 3, 2], "en": [2, 2]}
WEIGHTS = {"zh": 3.0, "en": 1.0}


@pytest.fixture
def packer(tmp_path: Path) -> Packer:
    return Packer(tmp_path / "run", STREAMS)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "POLL_S", 0.01)
    monkeypatch.setattr(read, "PACKER_SILENCE_S", 0.5)
    monkeypatch.setattr(read, "PACKER_START_S", 0.7)


def expected(packer: Packer, indices: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """What the order says, straight from what was packed."""
    order = Order([StreamBlocks(n, w, tuple(STREAMS[n])) for n, w in WEIGHTS.items()], 5)
    found = [(packer.blocks[list(WEIGHTS)[a.stream], a.shard], a.row) for a in (order[i] for i in indices)]
    return [b.ids_BT[row].tolist() for b, row in found], [b.ends[row].tolist() for b, row in found]


def plain(blocks: Blocks) -> tuple[list[list[int]], list[list[int]]]:
    return blocks.ids_BT.tolist(), [e.tolist() for e in blocks.ends]


def test_the_reader_follows_the_order(packer: Packer) -> None:
    reader = BlockReader(packer.plan().pack().run, WEIGHTS, "train", 5)
    indices = [0, 40, 3, 3, 7, *range(200)]
    assert plain(reader.read(indices)) == expected(packer, indices)
    assert reader.source(3) == f"语料/{list(WEIGHTS)[reader.order[3].stream]}-{reader.order[3].shard}.txt"
    assert [s.blocks for s in reader.shards(1)] == STREAMS["en"]


def test_a_split_counts_only_its_own_parts(tmp_path: Path) -> None:
    """The held-out shard is the fourth part of the plan and the first of its split."""
    write_blocks(tmp_path / "run", ["zh", "en"])
    run = Run(Place(tmp_path / "run"))
    held_out = BlockReader(run, {"zh": 1.0, "en": 1.0}, "validation", 1)
    assert [s.blocks for s in held_out.shards(0)] == [5] and held_out.source(0) == "zh-3"
    assert [s.blocks for s in BlockReader(run, {"en": 1.0}, "train", 1).shards(0)] == [14, 13, 13]


def test_the_first_blocks_are_the_same_whenever_asked(packer: Packer) -> None:
    order = BlockReader(packer.plan().pack().run, WEIGHTS, "train", 5).order.first_shards(0)
    every = np.concatenate([packer.blocks["zh", shard].ids_BT for shard in order])
    late = Packer(packer.run.folder.path.with_name("late"), STREAMS).plan()
    needed = next(n for n in range(len(order)) if sum(STREAMS["zh"][s] for s in order[:n]) >= 6)
    late.pack(*(("zh", s) for s in order[:needed]))
    for run in (packer.run, late.run):
        reader = BlockReader(run, WEIGHTS, "train", 5)
        assert reader.first(0, 6).ids_BT.tolist() == every[:6].tolist()
        assert [s.blocks for s in reader.first_shards(0, 6)] == [STREAMS["zh"][s] for s in order[:needed]]
    whole = BlockReader(packer.run, WEIGHTS, "train", 5).first(0, 99)
    assert whole.ids_BT.tolist() == every.tolist()


@pytest.fixture
def background() -> Iterator[Callable[[Callable[[], object]], None]]:
    threads: list[threading.Thread] = []

    def start(work: Callable[[], object]) -> None:
        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_a_reader_that_overtakes_the_packer_waits_and_says_so(
    packer: Packer, background: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan comes late, then one shard after the other; what is read is what it would be with all there from the start."""
    monkeypatch.setattr(read, "PACKER_SILENCE_S", 15)
    said: list[str] = []
    beat(packer.run.blocks, "packing")

    def until_it_waits_for(what: str) -> None:
        deadline = time.monotonic() + 15
        while f"train waits for packing: {what}" not in said:
            assert time.monotonic() < deadline, f"the reader never said that it waits for {what}: {said}"
            time.sleep(0.005)

    def work() -> None:
        until_it_waits_for("it has no plan yet")
        packer.plan()
        until_it_waits_for("stream zh has 0 of the 1 shards of its next window")
        packer.pack(("en", 0), *(("zh", n) for n in range(9, 0, -1)))
        until_it_waits_for("stream en has 0 of the 1 shards of its next window")
        packer.pack(("en", 1))
        until_it_waits_for("stream zh has 2 of the 3 shards of its next window")
        packer.pack(("zh", 0))
        beat(packer.run.blocks, "done")

    background(work)
    reader = BlockReader(packer.run, WEIGHTS, "train", 5, said.append)
    assert plain(reader.read(range(60))) == expected(packer, list(range(60)))
    assert said[0] == "train waits for packing: it has no plan yet"
    assert said[-1] == "train waits for packing: stream zh has 2 of the 3 shards of its next window"


def test_a_packer_that_lives_is_waited_for_longer_than_a_silent_one(packer: Packer, background: Callable[..., None]) -> None:
    def work() -> None:
        for _ in range(10):
            beat(packer.run.blocks, "packing")
            time.sleep(0.1)
        packer.pack()

    beat(packer.plan().run.blocks, "packing")
    background(work)
    reader = BlockReader(packer.run, WEIGHTS, "train", 5)
    started_s = time.monotonic()
    reader.read([0])
    assert time.monotonic() - started_s > 2 * read.PACKER_SILENCE_S * 0.9


@pytest.mark.parametrize("planned", [True, False])
def test_a_silent_packer_is_given_up(packer: Packer, planned: bool) -> None:
    beat(packer.run.blocks, "packing")
    if planned:
        packer.plan().pack(("zh", 0))
    with pytest.raises(
        DeadlineError, match=r"train waits for packing: .*, and .*/run/blocks has shown no sign of a packer for 0.5 s; run"
    ) as caught:
        BlockReader(packer.run, WEIGHTS, "train", 5).read([0])
    assert "\n" not in str(caught.value)


def test_a_packer_that_never_came_is_given_up(packer: Packer) -> None:
    with pytest.raises(DeadlineError, match=r"it has no plan yet, and .* no sign of a packer for 0.7 s"):
        BlockReader(packer.run, WEIGHTS, "train", 5)


def test_a_packer_that_failed_is_named_at_once(packer: Packer) -> None:
    packer.plan().pack(("zh", 0))
    beat(packer.run.blocks, "failed", "pack: the disk is full; free some space")
    with pytest.raises(RunError, match="and packing failed: pack: the disk is full; free some space; mend that, then"):
        BlockReader(packer.run, WEIGHTS, "train", 5).read([0])
    beat(packer.run.blocks, "done")
    with pytest.raises(RunError, match="shards of its next window, and packing is over; run `zhlm blocks RUN --repair`"):
        BlockReader(packer.run, WEIGHTS, "train", 5).read([0])


def test_a_ledger_of_another_plan_does_not_count(packer: Packer) -> None:
    packer.plan().pack()
    other = {name: tuple(type(p)(f"x{p.key}", p.source, p.splits) for p in parts) for name, parts in packer.planned.items()}
    write_plan(packer.run.blocks, Plan({}, other))
    with pytest.raises(NotPacked):
        BlockReader(packer.run, WEIGHTS, "train", 5, wait=False).read([0])


def test_a_stream_without_a_block_is_named(tmp_path: Path) -> None:
    run = Packer(tmp_path / "run", {"zh": [2], "en": [0, 0]}).plan().pack().run
    with pytest.raises(RunError, match=r"blocks: stream en has no training block in .*; give it more text"):
        BlockReader(run, WEIGHTS, "train", 1)
    with pytest.raises(RunError, match=r"stream zh has no held-out block in .*, or change pack.validation_share"):
        BlockReader(run, {"zh": 1.0}, "validation", 1)
    with pytest.raises(RunError, match=r"the plan in .* has no stream fr, only zh, en"):
        BlockReader(run, {"fr": 1.0}, "train", 1)


def test_every_shard_is_verified_when_first_opened(packer: Packer) -> None:
    run = packer.plan().pack().run
    part = Ledger(run.blocks).read()["zh", 7]
    path = (run.store / part.shards["train"].file).path
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"has the hash .*, the ledger says .*; run `zhlm blocks RUN --repair`"):
        BlockReader(run, WEIGHTS, "train", 5).read(range(48))


def test_weights_are_shares_of_tokens_where_blocks_are_not_full(tmp_path: Path) -> None:
    packer = Packer(tmp_path / "runs" / "tiny", {"zh": [40], "en": [40]}).plan().pack()
    data = run_data(tmp_path)
    for packing, share in (("none", None), ("best_fit", 0.75)):
        config = RunConfig.model_validate(data | {"pack": {"packing": packing, "block_tokens": T}})
        reader = training_reader(packer.run, config)
        blocks = reader.read(range(4000))
        tokens = np.array([int(e[-1]) for e in blocks.ends])
        zh = np.array([a.stream == 0 for a in reader.addresses(range(4000))])
        if share is None:
            assert tokens[zh].sum() / tokens.sum() == pytest.approx(0.75, abs=0.002)
        assert share is None or zh.mean() == pytest.approx(share, abs=0.001)


def test_steps_are_read_ahead_in_order(packer: Packer) -> None:
    reader = BlockReader(packer.plan().pack().run, WEIGHTS, "train", 5)
    asked: list[int] = []

    def steps() -> Iterator[list[int]]:
        for step in range(10):
            asked.append(step)
            yield list(range(6 * step, 6 * step + 6))

    with Prefetcher(reader, steps(), depth=3) as ahead:
        for step, blocks in enumerate(ahead):
            assert plain(blocks) == expected(packer, list(range(6 * step, 6 * step + 6)))
            assert asked == list(range(min(10, step + 4)))
    assert step == 9


def test_an_error_comes_out_of_the_step_it_belongs_to(packer: Packer) -> None:
    beat(packer.plan().run.blocks, "packing")
    order = BlockReader(packer.run, WEIGHTS, "train", 5).order.first_shards(0)
    packer.pack(("en", 0), ("en", 1), *(("zh", s) for s in order[:8]))  # one shard of the fourth window, which needs 3
    in_time = sum(STREAMS["zh"][s] for s in order[:7])
    draws = [Order([StreamBlocks(n, w, (1,)) for n, w in WEIGHTS.items()], 5).draw(i) for i in range(60)]
    with Prefetcher(BlockReader(packer.run, WEIGHTS, "train", 5), ([i] for i in itertools.count())) as ahead:
        got = 0
        with pytest.raises(DeadlineError, match="stream zh has 1 of the 3 shards of its next window"):
            for _ in ahead:
                got += 1
    assert got == draws.index((0, in_time)) > 0
    assert not [t for t in threading.enumerate() if t.name.startswith("zhlm-read")]


def test_closing_ends_a_wait(packer: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "POLL_S", 60)
    monkeypatch.setattr(read, "PACKER_SILENCE_S", 1000)
    beat(packer.plan().run.blocks, "packing")
    waits = threading.Event()
    ahead = Prefetcher(BlockReader(packer.run, WEIGHTS, "train", 5, lambda _: waits.set()), ([i] for i in range(9)))
    assert waits.wait(10)
    started_s = time.monotonic()
    ahead.close()
    assert time.monotonic() - started_s < 5
    assert not [t for t in threading.enumerate() if t.name.startswith("zhlm-read")]


def test_the_reader_is_much_faster_than_training(tmp_path: Path) -> None:
    """A quarter of what is asked of it (200 times 10,000 tokens/s), because other processes share the machine."""
    write_blocks(tmp_path / "run", ["zh", "en"], blocks=300, block_tokens=4096)
    reader = BlockReader(Run(Place(tmp_path / "run")), WEIGHTS, "train", 5)
    reader.read(range(400))
    started_s = time.monotonic()
    for step in range(40):
        reader.read(range(16 * step, 16 * step + 16))
    assert 40 * 16 * 4096 / (time.monotonic() - started_s) > 500_000
