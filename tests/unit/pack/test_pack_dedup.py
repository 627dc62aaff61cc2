"""Exact copies, by hashes of the whole text."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zhlm.pack.dedup import Hashes, among, first_copies, hashes_of

halves = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8)


def as_hashes(pairs: list[tuple[int, int]]) -> Hashes:
    return np.array(pairs, np.uint64).reshape(-1, 2)


def test_the_first_copy_stays_across_parts() -> None:
    parts = [hashes_of(["一", "二", "一"]), hashes_of([]), hashes_of(["三", "二", "𠮷"])]
    assert [f.tolist() for f in first_copies(parts)] == [[True, True, False], [], [True, False, True]]
    assert first_copies([]) == []


@given(st.lists(halves, max_size=5))
def test_first_copies_agree_with_a_set(parts: list[list[tuple[int, int]]]) -> None:
    seen: set[tuple[int, int]] = set()
    expected = [[not (h in seen or seen.add(h)) for h in part] for part in parts]  # type: ignore[func-returns-value]
    assert [f.tolist() for f in first_copies([as_hashes(part) for part in parts])] == expected


@given(halves, st.lists(halves, max_size=3))
def test_among_agrees_with_a_set(own: list[tuple[int, int]], others: list[list[tuple[int, int]]]) -> None:
    known = {h for part in others for h in part}
    assert among(as_hashes(own), [as_hashes(part) for part in others]).tolist() == [h in known for h in own]


def test_among_wants_the_whole_hash() -> None:
    own = as_hashes([(1, 2), (1, 3), (4, 5)])
    assert among(own, [as_hashes([(1, 3)]), as_hashes([(4, 6)])]).tolist() == [False, True, False]
    assert among(own, []).tolist() == [False] * 3
    assert among(hashes_of([]), [own]).tolist() == []


def test_a_hash_is_the_same_for_ever() -> None:
    first, second = hashes_of(["今天", "臺"])
    assert first.tobytes().hex() == "bba9562e5d1eb027aea7c58b84b67125"
    assert second.tolist() != hashes_of(["台"])[0].tolist()
