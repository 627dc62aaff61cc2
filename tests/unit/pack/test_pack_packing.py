"""Packing loses nothing, cuts nothing that fits, and depends on the documents alone."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhlm.pack.packing import best_fit, concat
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
    assert shown(best_fit(ids, lengths, 4)) == ["aacc", "bbbd", "dddd"]
    assert shown(concat(ids, lengths, 4)) == ["aabb", "bccd", "dddd"]
    assert [e.tolist() for e in concat(ids, lengths, 4).ends] == [[2, 4], [1, 3, 4], [4]]


def test_best_fit_takes_the_tightest_room() -> None:
    ids, lengths = letters("aaaaaa bbbbbbb ccc dd e")
    assert shown(best_fit(ids, lengths, 9)) == ["aaaaaaccc", "bbbbbbbdd", "e........"]


def test_the_fullest_block_is_closed_when_too_many_are_open() -> None:
    ids, lengths = letters("aaa bbbb ccccc d")
    assert shown(best_fit(ids, lengths, 6)) == ["aaa...", "bbbb..", "cccccd"]
    assert shown(best_fit(ids, lengths, 6, open_blocks=1)) == ["aaa...", "bbbb..", "cccccd"]
    ids, lengths = letters("aaaa bbbbb dd")
    assert shown(best_fit(ids, lengths, 6)) == ["aaaadd", "bbbbb."]
    assert shown(best_fit(ids, lengths, 6, open_blocks=1)) == ["aaaa..", "bbbbb.", "dd...."]


@pytest.mark.parametrize("pack", [best_fit, concat])
def test_no_document_gives_no_block(pack: Pack) -> None:
    for lengths in ([], [0, 0]):
        blocks = pack(np.empty(0, np.uint32), np.array(lengths, np.int64), 8)
        assert blocks.ids_BT.shape == (0, 8)
        assert len(blocks.ends) == 0


documents = st.lists(st.integers(0, 40), max_size=60)


@pytest.mark.parametrize("pack", [best_fit, concat])
@given(lengths=documents, block_tokens=st.integers(1, 17))
def test_every_token_is_there_once(pack: Pack, lengths: list[int], block_tokens: int) -> None:
    ids = np.arange(1, sum(lengths) + 1, dtype=np.uint32)
    blocks = pack(ids, np.array(lengths, np.int64), block_tokens)
    found = [i for piece in pieces(blocks) for i in piece]
    assert sorted(found) == ids.tolist()
    assert sum(int(e[-1]) for e in blocks.ends) == len(ids)


@given(lengths=documents, block_tokens=st.integers(1, 17), open_blocks=st.integers(1, 5))
def test_best_fit_never_cuts_what_fits(lengths: list[int], block_tokens: int, open_blocks: int) -> None:
    ids = np.arange(1, sum(lengths) + 1, dtype=np.uint32)
    found = {tuple(p) for p in pieces(best_fit(ids, np.array(lengths, np.int64), block_tokens, open_blocks))}
    for end, length in zip(np.cumsum(lengths).tolist(), lengths, strict=True):
        tokens = list(range(end - length + 1, end + 1))
        expected = [tokens[i : i + block_tokens] for i in range(0, length, block_tokens)]
        assert all(tuple(piece) in found for piece in expected)


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
