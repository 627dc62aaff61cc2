"""Packing loses nothing, cuts nothing that fits, and depends on the documents alone."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhlm.blocks.packing import Kind, Packer, alone, best_fit, concat
from zhlm.records import Blocks

Pack = Callable[[np.ndarray, np.ndarray, int], Blocks]


def letters(text: str) -> tuple[np.ndarray, np.ndarray]:
    documents = text.split()
    return np.frombuffer("".join(documents).encode(), np.uint8).copy(), np.array([len(d) for d in documents], np.int64)


def shown(blocks: Blocks) -> list[str]:
    return [row.tobytes().replace(b"\0", b".").decode() for row in blocks.ids_BT.astype(np.uint8)]


def pieces(blocks: Blocks) -> list[list[int]]:
    """Every document piece of every block, as its ids."""
    out = []
    for row, ends in zip(blocks.ids_BT, blocks.ends, strict=True):
        starts = [0, *ends[:-1]]
        assert all(a < b for a, b in zip(starts, ends, strict=True)), "ends ascend"
        assert not row[ends[-1] :].any(), "padding is 0"
        out += [row[a:b].tolist() for a, b in zip(starts, ends, strict=True)]
    return out


def test_the_example_of_the_docstring() -> None:
    ids, lengths = letters("aa bbb cc ddddd")
    assert shown(best_fit(ids, lengths, 4)) == ["dddd", "bbbd", "aacc"]
    assert shown(concat(ids, lengths, 4)) == ["aabb", "bccd", "dddd"]
    assert shown(alone(ids, lengths, 4)) == ["aa..", "bbb.", "cc..", "dddd", "d..."]
    assert [e.tolist() for e in concat(ids, lengths, 4).ends] == [[2, 4], [1, 3, 4], [4]]
    assert [e.tolist() for e in best_fit(ids, lengths, 4).ends] == [[4], [3, 4], [2, 4]]


def test_best_fit_takes_the_tightest_room() -> None:
    ids, lengths = letters("aaaaaa bbbbbbb ccc dd e")
    assert shown(best_fit(ids, lengths, 9)) == ["bbbbbbbdd", "aaaaaaccc", "e........"]


def test_equal_lengths_share_a_block_as_one_by_one() -> None:
    ids, lengths = letters("aaa bb cc dd ee ff gg hh")
    assert shown(best_fit(ids, lengths, 8)) == ["aaabbcc.", "ddeeffgg", "hh......"]


@pytest.mark.parametrize("pack", [best_fit, concat, alone])
def test_no_document_gives_no_block(pack: Pack) -> None:
    for lengths in ([], [0, 0]):
        blocks = pack(np.empty(0, np.uint32), np.array(lengths, np.int64), 8)
        assert blocks.ids_BT.shape == (0, 8)
        assert len(blocks.ends) == 0


documents = st.lists(st.integers(0, 40), max_size=60)


@pytest.mark.parametrize("pack", [best_fit, concat, alone])
@given(lengths=documents, block_tokens=st.integers(1, 17))
def test_every_token_is_there_once(pack: Pack, lengths: list[int], block_tokens: int) -> None:
    ids = np.arange(1, sum(lengths) + 1, dtype=np.uint32)
    blocks = pack(ids, np.array(lengths, np.int64), block_tokens)
    found = [i for piece in pieces(blocks) for i in piece]
    assert sorted(found) == ids.tolist()
    assert sum(int(e[-1]) for e in blocks.ends) == len(ids)


@pytest.mark.parametrize("pack", [best_fit, alone])
@given(lengths=documents, block_tokens=st.integers(1, 17))
def test_what_fits_is_never_cut(pack: Pack, lengths: list[int], block_tokens: int) -> None:
    ids = np.arange(1, sum(lengths) + 1, dtype=np.uint32)
    found = {tuple(p) for p in pieces(pack(ids, np.array(lengths, np.int64), block_tokens))}
    for end, length in zip(np.cumsum(lengths).tolist(), lengths, strict=True):
        tokens = list(range(end - length + 1, end + 1))
        expected = [tokens[i : i + block_tokens] for i in range(0, length, block_tokens)]
        assert all(tuple(piece) in found for piece in expected)


@given(lengths=documents, block_tokens=st.integers(1, 17))
def test_best_fit_is_within_the_bound_of_its_algorithm(lengths: list[int], block_tokens: int) -> None:
    """Best fit decreasing needs at most 11/9 of the least number of blocks, and 6/9 of one more (Dosa 2007, for first fit decreasing)."""
    ids = np.ones(sum(lengths), np.uint32)
    blocks = best_fit(ids, np.array(lengths, np.int64), block_tokens)
    long = [n for n in (length % block_tokens for length in lengths) if n * 2 > block_tokens]
    least = max(-(-len(ids) // block_tokens), len(long))
    assert len(blocks.ends) <= 1.5 * least + 1


@pytest.mark.parametrize("kind", ["best_fit", "concat", "none"])
@given(lengths=documents, block_tokens=st.integers(1, 17), window=st.integers(1, 60), cuts=st.lists(st.integers(0, 700), max_size=12))
def test_blocks_do_not_depend_on_how_documents_arrive(
    kind: Kind, lengths: list[int], block_tokens: int, window: int, cuts: list[int]
) -> None:
    ids = np.arange(1, sum(lengths) + 1, dtype=np.uint32)

    def packed(borders: list[int]) -> list[Blocks]:
        """Hand the ids over in calls that end at these places, in the middle of a document or not."""
        packer, out, ends = Packer(kind, block_tokens, np.uint32, window), [], np.cumsum(lengths)
        for a, b in pairwise([0, *borders, len(ids)]):
            inside = ends[(ends > a) & (ends < b)].tolist()
            marks = [a, *inside, b]
            if b > a:
                out += packer.add(ids[a:b], np.diff(marks), unfinished=b not in ends)
        return [*out, packer.finish()]

    whole, cut = packed([]), packed(sorted(c for c in cuts if c < len(ids)))
    assert [b.ids_BT.tolist() for b in cut] == [b.ids_BT.tolist() for b in whole]
    assert [[e.tolist() for e in b.ends] for b in cut] == [[e.tolist() for e in b.ends] for b in whole]
    assert sorted(i for b in whole for piece in pieces(b) for i in piece) == ids.tolist()


def test_the_tape_goes_on_from_window_to_window() -> None:
    ids, lengths = letters("aaaaa bbb cccc dd")
    packer = Packer("concat", 4, np.uint8, window_tokens=5)
    blocks = [*packer.add(ids, lengths), packer.finish()]
    assert [row for b in blocks for row in shown(b)] == ["aaaa", "abbb", "cccc", "dd.."]


@given(lengths=documents, block_tokens=st.integers(1, 17))
def test_concat_keeps_the_order_and_pads_the_last_block_only(lengths: list[int], block_tokens: int) -> None:
    ids = np.arange(1, sum(lengths) + 1, dtype=np.uint32)
    blocks = concat(ids, np.array(lengths, np.int64), block_tokens)
    assert [i for piece in pieces(blocks) for i in piece] == ids.tolist()
    assert all(int(e[-1]) == block_tokens for e in blocks.ends[:-1])


def test_best_fit_fills_real_length_distributions() -> None:
    lengths = np.random.default_rng(3).lognormal(6, 1.2, 20_000).astype(np.int64) + 2
    blocks = best_fit(np.ones(lengths.sum(), np.uint16), lengths, 2048)
    assert lengths.sum() / blocks.ids_BT.size >= 0.99
