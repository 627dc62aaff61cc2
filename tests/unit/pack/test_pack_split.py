"""Fates of documents: decided by text and order alone."""

import numpy as np
import pytest

from zhlm.pack.dedup import Hashes, hashes_of
from zhlm.pack.near import SIGNATURE_SLOTS, signatures
from zhlm.pack.split import Fate, decide, drop_near, fates_inline, held_out_by_hash

PROSE = "北京的秋天最美，香山的红叶漫山遍野，游人如织。湖边的柳树还绿着，孩子们在草地上放风筝，老人们在亭子里下棋聊天。"
EDITED = PROSE.replace("老人们", "大人们")
OTHER = "数据库的事务必须满足原子性、一致性、隔离性和持久性，否则并发写入时会出现难以追查的错误，备份也无从谈起。"


def hashed(*texts: str) -> Hashes:
    return hashes_of(texts)


def named(parts: list[list[int]]) -> list[list[str]]:
    return [[Fate(f).name for f in part] for part in parts]


def fates(*args: list[Hashes], share: float = 0.0, deduplicate: bool = True) -> list[list[list[str]]]:
    return [named(part) for part in decide(args[0], args[1], share=share, deduplicate=deduplicate)]  # type: ignore[arg-type]


def near_fates(training: list[list[str]], held_out: list[list[str]], share: float = 0.0, deduplicate: bool = True) -> list[list[list[str]]]:
    decided = decide([*map(hashes_of, training)], [*map(hashes_of, held_out)], share=share, deduplicate=deduplicate)
    drop_near([([*decided[0], *decided[1]], [*map(signatures, [*training, *held_out])])], 0.7)
    return [named(part) for part in decided]  # type: ignore[arg-type]


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


def test_of_near_copies_the_first_is_kept() -> None:
    assert near_fates([[OTHER, PROSE], [], [EDITED, PROSE]], []) == [[["TRAIN", "TRAIN"], [], ["NEAR_DUPLICATE", "DUPLICATE"]], []]
    assert near_fates([[OTHER, PROSE], [EDITED, PROSE]], [], deduplicate=False)[0][1] == ["NEAR_DUPLICATE", "NEAR_DUPLICATE"]
    assert near_fates([], []) == [[], []]


def test_nothing_near_a_held_out_document_is_trained_on() -> None:
    assert near_fates([[PROSE, OTHER]], [[EDITED]]) == [[["IN_HELD_OUT", "TRAIN"]], [["VALIDATION"]]]
    assert near_fates([[PROSE, EDITED]], [[EDITED, PROSE]]) == [[["IN_HELD_OUT", "IN_HELD_OUT"]], [["VALIDATION", "NEAR_DUPLICATE"]]]


def test_of_near_copies_the_validation_document_is_kept() -> None:
    texts = [PROSE.replace("老", word) for word in "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉"]
    in_validation = held_out_by_hash(hashes_of(texts), 0.1)
    first = int(np.flatnonzero(in_validation)[0])
    assert first > 0, "the first text would be kept in any case"
    assert in_validation.sum() > 1, "one would be kept in any case"
    expected = ["VALIDATION" if i == first else "NEAR_DUPLICATE" if held else "IN_HELD_OUT" for i, held in enumerate(in_validation)]
    assert near_fates([texts], [], share=0.1)[0] == [expected]


def rows(*changed: range) -> list[np.ndarray]:
    """A signature each, all the same but for the slots that change."""
    found = np.zeros((len(changed), SIGNATURE_SLOTS), np.uint32)
    for row, slots in enumerate(changed):
        found[row, slots] = row + 1
    return [found]


def test_training_documents_do_not_decide_what_is_validated_on() -> None:
    """Two validation documents hang together by a training document only: both stay, it goes. What resembles only that one stays."""
    fates = [np.array([Fate.TRAIN, Fate.VALIDATION, Fate.VALIDATION, Fate.TRAIN], np.uint8)]
    drop_near([(fates, rows(range(0), range(20), range(20, 40), range(100, 120)))], 0.8)
    assert named([list(fates[0])]) == [["IN_HELD_OUT", "VALIDATION", "VALIDATION", "TRAIN"]]


def test_only_what_is_validated_on_keeps_others_out() -> None:
    """The second validation document is dropped for the first, and with it the reason to drop what resembles the second alone."""
    (validated,) = rows(range(0), range(20))
    (near_both,) = rows(range(5))
    near_second = validated[1:].copy()
    near_second[:, 20:40] = 7
    far = rows(range(0), range(60, 128))[0][1:]
    one = [np.array([Fate.VALIDATION, Fate.VALIDATION], np.uint8)]
    other = [np.array([Fate.TRAIN, Fate.TRAIN, Fate.VALIDATION], np.uint8)]
    drop_near([(other, [np.concatenate([near_both, near_second, far])]), (one, [validated])], 0.8)
    assert named([list(one[0])]) == [["VALIDATION", "NEAR_DUPLICATE"]]
    assert named([list(other[0])]) == [["IN_HELD_OUT", "TRAIN", "VALIDATION"]]
    lonely = [np.array([Fate.TRAIN], np.uint8)]
    drop_near([(lonely, rows(range(0))), ([], [])], 0.8)
    assert named([list(lonely[0])]) == [["TRAIN"]]


def test_without_a_survey_the_text_alone_decides() -> None:
    texts = [f"第{i % 300}篇" for i in range(400)]
    held_out = hashes_of(["第3篇", "第7篇"])
    inline = named([list(fates_inline(texts, 0.1, held_out))])[0]
    assert inline == named([list(fates_inline(texts[::-1], 0.1, held_out))])[0][::-1]
    assert inline[3] == inline[303] == inline[7] == "IN_HELD_OUT"
    assert {*inline} == {"TRAIN", "VALIDATION", "IN_HELD_OUT"}
    assert fates_inline(texts, 0.0, hashes_of([])).tolist() == [Fate.TRAIN] * 400
    flags = held_out_by_hash(hashes_of(texts), 0.1)
    assert [f == "VALIDATION" for f, t in zip(inline, texts, strict=True) if t not in ("第3篇", "第7篇")] == [
        bool(f) for f, t in zip(flags, texts, strict=True) if t not in ("第3篇", "第7篇")
    ]
