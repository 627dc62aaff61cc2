"""Fates of documents: decided by text and order alone."""

import numpy as np
import pytest

from zhlm.pack.dedup import Hashes, hashes_of
from zhlm.pack.near import signatures
from zhlm.pack.split import Fate, decide, fates_inline, held_out_by_hash

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
    decided = decide(
        [hashes_of(texts) for texts in training],
        [hashes_of(texts) for texts in held_out],
        share=share,
        deduplicate=deduplicate,
        near=0.7,
        training_signatures=[signatures(texts) for texts in training],
        held_out_signatures=[signatures(texts) for texts in held_out],
    )
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
    assert near_fates([[PROSE, OTHER]], [[EDITED]]) == [[["NEAR_DUPLICATE", "TRAIN"]], [["VALIDATION"]]]
    assert near_fates([[PROSE, EDITED]], [[EDITED]]) == [[["NEAR_DUPLICATE", "IN_HELD_OUT"]], [["VALIDATION"]]]


def test_of_near_copies_the_validation_document_is_kept() -> None:
    texts = [PROSE.replace("老", word) for word in "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉"]
    in_validation = held_out_by_hash(hashes_of(texts), 0.1)
    first = int(np.flatnonzero(in_validation)[0])
    assert first > 0, "the first text would be kept in any case"
    expected = ["VALIDATION" if i == first else "NEAR_DUPLICATE" for i in range(len(texts))]
    assert near_fates([texts], [], share=0.1)[0] == [expected]


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
