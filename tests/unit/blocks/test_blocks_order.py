"""The order of blocks: complete, fair, seekable, and the same for ever."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhlm.blocks.order import WINDOW_SHARDS, Address, Order, StreamBlocks

ZH_EN = [StreamBlocks("zh", 0.75, (3, 0, 2, 4)), StreamBlocks("en", 0.25, (2, 1))]
GOLDEN = [
    (0, 0, 0, 0), (0, 0, 3, 3), (1, 0, 0, 0), (0, 0, 3, 2), (0, 0, 3, 1), (0, 0, 2, 1), (1, 0, 0, 1), (0, 0, 3, 0),
    (0, 0, 0, 1), (0, 0, 2, 0), (1, 0, 1, 0), (0, 0, 0, 2), (0, 1, 0, 1), (0, 1, 2, 1), (1, 1, 1, 0), (0, 1, 3, 0),
]  # fmt: skip
"""ZH_EN with seed 7. A resumed run reads these places: the numbers may change only together with a new format of checkpoints."""


def addresses(order: Order, indices: range) -> list[tuple[int, int, int, int]]:
    return [(a.stream, a.epoch, a.shard, a.row) for a in (order[i] for i in indices)]


shard_sizes = st.lists(st.integers(0, 6), min_size=1, max_size=30).filter(sum)
streams_of_any_kind = st.lists(st.tuples(st.floats(0.01, 1), shard_sizes), min_size=1, max_size=5)


def make_order(parts: list[tuple[float, list[int]]], seed: int = 1) -> Order:
    return Order([StreamBlocks(str(n), weight, tuple(sizes)) for n, (weight, sizes) in enumerate(parts)], seed)


def test_the_order_never_changes() -> None:
    assert addresses(Order(ZH_EN, 7), range(16)) == GOLDEN
    wide = Order([StreamBlocks("a", 1.0, (3,) * 20)], 7)
    assert [(a.shard, a.row) for a in (wide[i] for i in range(8))] == [
        (13, 1), (1, 0), (7, 2), (6, 0), (7, 1), (0, 2), (13, 2), (6, 2),
    ]  # fmt: skip


def test_another_process_sees_the_same_order() -> None:
    code = (
        "from zhlm.blocks.order import Order, StreamBlocks as S\n"
        "o = Order([S('zh', 0.75, (3, 0, 2, 4)), S('en', 0.25, (2, 1))], 7)\n"
        "print([(a.stream, a.epoch, a.shard, a.row) for a in (o[i] for i in range(16))])"
    )
    for hash_seed in ("0", "99"):
        ran = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True, timeout=60
        )
        assert ran.stdout.strip() == str(GOLDEN)


@given(parts=streams_of_any_kind, seed=st.integers(0, 2**63))
def test_every_block_once_per_pass(parts: list[tuple[float, list[int]]], seed: int) -> None:
    order = make_order(parts, seed)
    seen: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i in range(400):
        a = order[i]
        seen.setdefault((a.stream, a.epoch), []).append((a.shard, a.row))
    for (stream, epoch), places in seen.items():
        all_places = {(shard, row) for shard, size in enumerate(parts[stream][1]) for row in range(size)}
        assert len(set(places)) == len(places) and set(places) <= all_places
        if (stream, epoch + 1) in seen:
            assert set(places) == all_places


@given(parts=streams_of_any_kind, start=st.integers(0, 10**9))
def test_seeking_equals_reading_from_the_start(parts: list[tuple[float, list[int]]], start: int) -> None:
    whole = addresses(make_order(parts), range(120))
    for i in (119, 0, 57, 118, 58):
        assert addresses(make_order(parts), range(i, i + 1)) == whole[i : i + 1]
    # The draws just behind a far index continue those at it, so the far place was reached by arithmetic alone and is right.
    order = make_order(parts)
    counts: dict[int, int] = {}
    for i in range(start, start + 50):
        stream, draw = order.draw(i)
        assert draw == counts.get(stream, draw)
        counts[stream] = draw + 1


@given(weights=st.lists(st.floats(0.001, 1), min_size=1, max_size=6), start=st.integers(0, 10**6))
def test_each_stream_gets_its_share(weights: list[float], start: int) -> None:
    order = make_order([(w, [10]) for w in weights])
    bound = (len(weights) - 1) / 2 + 1e-2  # the shares are whole numbers of 2**-32: 1e6 / 2**32 is well below 1e-2
    shares = np.array(weights) / sum(weights)
    drawn = np.array([order.draw(i)[0] for i in range(start, start + 1000)])
    taken = np.cumsum(drawn[:, None] == np.arange(len(weights)), axis=0)
    assert np.abs(taken - np.arange(1, 1001)[:, None] * shares).max() <= 2 * bound, "any consecutive indices"
    if start == 0:
        assert np.abs(taken - np.arange(1, 1001)[:, None] * shares).max() <= bound, "from the start"


def test_two_streams_are_within_one_block_of_their_shares_anywhere() -> None:
    order = Order([StreamBlocks("zh", 0.8, (10,)), StreamBlocks("en", 0.2, (10,))], 1)
    drawn = np.array([order.draw(i)[0] for i in range(3000)])
    for start in range(0, 2000, 7):
        for length in (1, 10, 999, 1000):
            assert abs(int((drawn[start : start + length] == 0).sum()) - 0.8 * length) <= 1.0


def test_the_worked_example_of_the_interleaving() -> None:
    order = Order(ZH_EN, 3)
    assert [order.draw(i)[0] for i in range(8)] == [0, 0, 1, 0, 0, 0, 1, 0]


def test_rows_are_mixed_within_a_window_of_shards_only() -> None:
    order = Order([StreamBlocks("a", 1.0, (50,) * 40)], 3)
    window_blocks = WINDOW_SHARDS * 50
    shards_of_windows = []
    for first in range(0, 2000, window_blocks):
        shards = [order[i].shard for i in range(first, first + window_blocks)]
        shards_of_windows.append(set(shards))
        assert len(set(shards)) == WINDOW_SHARDS
        assert sum(a != b for a, b in itertools.pairwise(shards)) > window_blocks / 2, "rows are shuffled across the shards"
    assert set().union(*shards_of_windows) == set(range(40)) and sum(map(len, shards_of_windows)) == 40


def test_seeds_passes_and_streams_have_orders_of_their_own() -> None:
    sizes = (10,) * 4

    def one_pass(seed: int, stream: int, epoch: int) -> list[tuple[int, int]]:
        order = Order([StreamBlocks("a", 1.0, sizes), StreamBlocks("b", 1.0, sizes)], seed)
        places = (order[i] for i in range(200))
        return [(a.shard, a.row) for a in places if (a.stream, a.epoch) == (stream, epoch)]

    passes = [one_pass(1, 0, 0), one_pass(2, 0, 0), one_pass(1, 0, 1), one_pass(1, 1, 0)]
    for i, one in enumerate(passes):
        assert len(one) == 40
        assert all(one != other for other in passes[:i])
    assert one_pass(1, 0, 0) == passes[0]


def test_a_shuffle_is_fair() -> None:
    """Each block comes in each place about equally often; a broken hash would prefer some."""
    firsts = np.zeros((8, 8))
    for seed in range(4000):
        order = Order([StreamBlocks("a", 1.0, (8,))], seed)
        for place in range(8):
            firsts[place, order[place].row] += 1
    assert np.abs(firsts - 500).max() < 5 * np.sqrt(500 * 7 / 8)


def test_a_stream_without_blocks_is_refused_by_name() -> None:
    with pytest.raises(AssertionError, match="en"):
        Order([StreamBlocks("zh", 1.0, (3,)), StreamBlocks("en", 1.0, (0, 0))], 1)


def test_one_block_repeats() -> None:
    order = Order([StreamBlocks("a", 1.0, (0, 1, 0))], 1)
    assert [order[i] for i in (0, 5)] == [Address(0, 0, 1, 0), Address(0, 5, 1, 0)]
