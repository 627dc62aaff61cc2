"""Fates of documents: decided by text and order alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhlm.pack.dedup import Hashes, among, as_hashes, first_copies, hash_of
from zhlm.pack.split import Fate, decide, held_out_by_hash


def hashed(*texts: str) -> Hashes:
    return as_hashes(b"".join(hash_of(t) for t in texts))


def fates(*args: list[Hashes], share: float = 0.0, deduplicate: bool = True) -> list[list[list[str]]]:
    return [[[Fate(f).name for f in file] for file in part] for part in decide(args[0], args[1], share=share, deduplicate=deduplicate)]


def test_the_first_copy_stays_across_files() -> None:
    files = [hashed("一", "二", "一"), hashed(), hashed("三", "二", "𠮷")]
    assert [f.tolist() for f in first_copies(files)] == [[True, True, False], [], [True, False, True]]
    assert first_copies([]) == []


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), max_size=5))
def test_first_copies_agree_with_a_set(files: list[list[str]]) -> None:
    seen: set[str] = set()
    expected = [[not (t in seen or seen.add(t)) for t in texts] for texts in files]  # type: ignore[func-returns-value]
    assert [f.tolist() for f in first_copies([hashed(*texts) for texts in files])] == expected


def test_among_wants_the_whole_hash() -> None:
    own = np.array([[1, 2], [1, 3], [4, 5]], np.uint64)
    assert among(own, [np.array([[1, 3]], np.uint64), np.array([[4, 6]], np.uint64)]).tolist() == [False, True, False]
    assert among(own, []).tolist() == [False] * 3
    assert among(hashed(), [own]).tolist() == []


def test_a_hash_is_the_same_for_ever() -> None:
    assert hash_of("今天").hex() == "c943d8e3ef8ac94b0977c65654b2c389"
    assert hash_of("臺") != hash_of("台")


def test_held_out_documents_are_not_trained_on() -> None:
    training, held_out = [hashed("一", "二", "一"), hashed("三", "三")], [hashed("二", "四", "四")]
    assert fates(training, held_out) == [
        [["TRAIN", "IN_HELD_OUT", "DUPLICATE"], ["TRAIN", "DUPLICATE"]],
        [["VALIDATION", "VALIDATION", "DUPLICATE"]],
    ]
    assert fates(training, held_out, deduplicate=False) == [
        [["TRAIN", "IN_HELD_OUT", "TRAIN"], ["TRAIN", "TRAIN"]],
        [["VALIDATION", "VALIDATION", "VALIDATION"]],
    ]


def test_held_out_files_replace_the_share() -> None:
    assert fates([hashed(*map(str, range(50)))], [hashed("x")], share=0.9)[0] == [["TRAIN"] * 50]


def test_the_split_is_a_function_of_the_text() -> None:
    texts = [f"第{i}篇" for i in range(4000)]
    flags = held_out_by_hash(hashed(*texts), 0.1)
    assert flags.mean() == pytest.approx(0.1, abs=0.02)
    assert held_out_by_hash(hashed(*texts[::-1]), 0.1)[::-1].tolist() == flags.tolist()
    larger = held_out_by_hash(hashed(*texts), 0.2)
    assert (larger | ~flags).all(), "a larger share keeps what a smaller one held out"
    assert not held_out_by_hash(hashed(*texts), 0.0).any()


def test_copies_never_sit_on_both_sides() -> None:
    texts = [f"第{i % 50}篇" for i in range(200)]
    (found,), _ = fates([hashed(*texts)], [], share=0.5, deduplicate=False)
    sides = {text: {f for t, f in zip(texts, found, strict=True) if t == text} for text in texts}
    assert all(len(side) == 1 for side in sides.values())
    assert {"TRAIN", "VALIDATION"} == set(found)
