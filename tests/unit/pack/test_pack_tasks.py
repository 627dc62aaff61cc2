"""What is done to one part of a corpus, without Ray."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from zhlm.blocks.store import find_part, open_shard
from zhlm.config.schema import CleanConfig
from zhlm.corpus.files import find_files
from zhlm.corpus.parts import parts_of
from zhlm.errors import CorpusError, VerificationError
from zhlm.pack import tasks
from zhlm.pack.dedup import hashes_of
from zhlm.pack.split import Fate
from zhlm.pack.tasks import PackTask, Settings, Source, SurveyTask, pack_part, survey, with_ends
from zhlm.storage import Place

DOCUMENTS = ["今天  天气很好。", "短", "臺灣\x00龍", "生僻字𠮷", "👨‍👩‍👧", "今天 天气很好。", "end"]
"""Cleaned, the sixth is a copy of the first."""


def source_of(path: Path, shard_bytes: int = 1 << 20) -> Source:
    (part,) = parts_of(find_files([str(path)]), shard_bytes)
    return Source("new", part, None, CleanConfig())


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in DOCUMENTS))
    return source_of(path)


def byte_tokenizer() -> str:
    """Ids 0..255 are the bytes in the order of the byte-level alphabet, 256 is the end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return str(tokenizer.to_str())


def settings(store: Path, **changes: object) -> Settings:
    values = {
        "store": str(store), "tokenizer_json": byte_tokenizer(), "engine": "tokenizers", "cuts": None, "parallel": False, "vocabulary": 257,
        "block_tokens": 32, "packing": "best_fit", "start_id": None, "end_id": 256,
    }  # fmt: skip
    return Settings(**{**values, **changes})  # type: ignore[arg-type]


def pack_task(source: Source, fates: list[Fate], key: str = "abcd") -> PackTask:
    return PackTask(source, key, ("train", "validation"), np.array(fates, np.uint8))


def held_out(store: Path, key: str = "abcd") -> list[str]:
    texts: list[str] = pq.read_table(store / key[:2] / f"{key}.held_out.parquet").column("text").to_pylist()
    return texts


FATES = [Fate.TRAIN, Fate.VALIDATION, Fate.TRAIN, Fate.IN_HELD_OUT, Fate.DUPLICATE, Fate.TRAIN]


@pytest.mark.parametrize("signatures", [False, True])
def test_a_survey_counts_and_hashes_and_is_kept(source: Source, tmp_path: Path, signatures: bool) -> None:
    task = SurveyTask(source, str(tmp_path / "store"), "ef01", signatures)
    found = survey(task)
    assert found.documents == 7
    assert found.dropped == {"too_short": 1}
    assert found.hashes_N2.shape == (6, 2)
    assert (found.hashes_N2[0] == found.hashes_N2[4]).all()
    assert (found.signatures_NK is not None) == signatures
    Path(source.part.source).unlink()
    again = survey(task)
    assert (again.documents, again.dropped) == (found.documents, found.dropped)
    assert np.array_equal(again.hashes_N2, found.hashes_N2)
    assert (again.signatures_NK is None) == (not signatures) and (
        not signatures or np.array_equal(again.signatures_NK, found.signatures_NK)
    )


def test_every_fate_ends_where_it_should(source: Source, tmp_path: Path) -> None:
    packed = pack_part(settings(tmp_path), pack_task(source, FATES))
    train, validation = packed.shards["train"], packed.shards["validation"]
    assert (train.documents, validation.documents) == (3, 1)
    assert packed.documents == 7 and packed.dropped == {"duplicate": 1, "in_held_out": 1, "too_short": 1}
    found = find_part(Place(tmp_path), "abcd")
    assert found is not None and found[0] == packed
    assert [(r["reason"], r["row"], r["text"]) for r in found[1]["rejects"]] == [
        ("too_short", 2, "短"), ("in_held_out", 5, "👨‍👩‍👧"), ("duplicate", 6, "今天 天气很好。"),
    ]  # fmt: skip
    assert held_out(tmp_path) == ["臺灣龍"]
    kept = ["今天 天气很好。", "生僻字𠮷", "end"]
    assert train.characters == sum(map(len, kept)) and train.utf8_bytes == sum(len(t.encode()) for t in kept)
    assert train.tokens == train.utf8_bytes + 3, "a token per byte, and an end for each document"
    assert train.file == "ab/abcd.train.arrow" and packed.source == source.part.source
    table = open_shard(Place(tmp_path), train)
    assert sum(e[-1] for e in table.column("document_ends").to_pylist()) == train.tokens
    assert sorted(p.name for p in (tmp_path / "ab").iterdir()) == [
        "abcd.held_out.parquet", "abcd.json", "abcd.train.arrow", "abcd.validation.arrow",
    ]  # fmt: skip


@pytest.mark.parametrize("packing", ["best_fit", "concat", "none"])
def test_what_is_longer_than_a_block_is_cut_off_and_counted(tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a" * 10, "b" * 31, "c" * 32, "d" * 100, "e" * 5]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    found = []
    monkeypatch.setattr("zhlm.pack.tasks.in_pieces", lambda text, _: (text[at : at + 7] for at in range(0, len(text), 7)))
    for number, long_characters in enumerate((1000, 8)):  # whole, and a piece at a time
        monkeypatch.setattr("zhlm.pack.tasks.LONG_CHARACTERS", long_characters)
        place = tmp_path / str(number)
        values = settings(place, packing=packing, truncate=True)
        task = PackTask(source_of(path), "abcd", ("train",), np.zeros(5, np.uint8))
        found.append((shard := pack_part(values, task).shards["train"], open_shard(Place(place), shard)))
    for shard, table in found:
        assert shard.tokens + shard.cut_tokens == sum(len(t) + 1 for t in texts)
        assert shard.tokens == 11 + 32 + 32 + 32 + 6 and shard.documents == 5
        assert shard.utf8_bytes == sum(map(len, texts)), "bytes are those of the tokens before the cut"
        assert table.equals(found[0][1])


def test_documents_that_are_no_text_are_dropped_and_counted(tmp_path: Path) -> None:
    values = ["今天天气很好。", None, "", 7, "生僻字𠮷很少见", ["不是"]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    source = source_of(tmp_path / "a.jsonl")
    with pytest.raises(CorpusError, match=r"line 2: .*skip_non_text: true"):
        survey(SurveyTask(source, str(tmp_path / "store"), "ef01", False))
    source = replace(source, skip_non_text=True)
    found = survey(SurveyTask(source, str(tmp_path / "store"), "ef02", False))
    assert (found.documents, found.dropped, len(found.hashes_N2)) == (6, {"not_text": 3, "empty": 1}, 2)
    for needs in (None, found.needs_R):
        task = replace(pack_task(source, [Fate.TRAIN, Fate.VALIDATION], f"abc{needs is None:d}"), needs_R=needs)
        packed = pack_part(settings(tmp_path), task)
        assert (packed.documents, packed.dropped) == (len(values), {"empty": 1, "not_text": 3})
        assert held_out(tmp_path, task.key) == [values[4]]
        committed = find_part(Place(tmp_path), task.key)
        assert committed is not None
        said = [(r["row"], r["text"]) for r in committed[1]["rejects"] if r["reason"] == "not_text"]
        assert said == [(2, "null"), (4, "7"), (6, '["不是"]')]


def test_a_split_that_is_not_asked_for_gets_no_shard(source: Source, tmp_path: Path) -> None:
    packed = pack_part(settings(tmp_path), PackTask(source, "abcd", ("train",), np.zeros(6, np.uint8)))
    assert set(packed.shards) == {"train"}
    assert not list(tmp_path.rglob("*validation*")) and not list(tmp_path.rglob("*held_out*"))


def test_without_a_survey_each_document_decides_for_itself(source: Source, tmp_path: Path) -> None:
    known = hashes_of(["生僻字𠮷"])
    packed = pack_part(settings(tmp_path, held_out_N2=known), PackTask(source, "abcd", ("train", "validation"), None, 0.5))
    assert packed.dropped == {"in_held_out": 1, "too_short": 1}, "copies stay"
    assert packed.shards["train"].documents + packed.shards["validation"].documents == 5
    assert {t for t in held_out(tmp_path)} <= {"今天 天气很好。", "臺灣龍", "👨‍👩‍👧", "end"}


def test_a_part_that_is_there_is_not_packed_again(source: Source, tmp_path: Path) -> None:
    packed = pack_part(settings(tmp_path), pack_task(source, FATES))
    Path(source.part.source).unlink()
    assert pack_part(settings(tmp_path), pack_task(source, FATES)) == packed


def test_held_out_texts_are_capped(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "HELD_OUT_DOCUMENTS", 2)
    packed = pack_part(settings(tmp_path), pack_task(source, [Fate.VALIDATION] * 6))
    assert held_out(tmp_path) == ["今天 天气很好。", "臺灣龍"]
    assert packed.shards["validation"].documents == 6


@pytest.mark.parametrize("packing", ["best_fit", "concat", "none"])
def test_long_texts_are_encoded_in_pieces_with_the_same_blocks(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    path = tmp_path / "long.jsonl"
    texts = [
        "短文一。",
        "".join(f"第{i}行很长很长。\n也长，{i * i}。\n" for i in range(20)),
        "短文二。",
        "".join(f"甲{i}，乙。" for i in range(90)),
    ]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    task = pack_task(source_of(path), [Fate.TRAIN] * 4)
    whole = pack_part(settings(tmp_path / "whole", packing=packing, start_id=256), task)
    monkeypatch.setattr(tasks, "LONG_CHARACTERS", 50)
    in_pieces = tasks.in_pieces
    monkeypatch.setattr(tasks, "in_pieces", lambda text, cuts: in_pieces(text, cuts, 10))
    cuts = r"(?<=\S\n)(?=\S)|(?<=[\u4e00-\u9fff])(?=[\u3002\uff0c])"
    assert pack_part(settings(tmp_path / "cut", packing=packing, start_id=256, cuts=cuts), task) == whole


@pytest.mark.parametrize("num_fates", [5, 7])
def test_a_file_that_changed_since_the_survey_is_refused(source: Source, tmp_path: Path, num_fates: int) -> None:
    with pytest.raises(CorpusError, match="changed while it was read"):
        pack_part(settings(tmp_path / "store"), pack_task(source, [Fate.TRAIN] * num_fates))
    assert [p for p in (tmp_path / "store").rglob("*") if p.is_file()] == [], "nothing half-written"


@pytest.mark.parametrize("work", ["survey", "pack"])
def test_what_was_read_of_a_file_that_changed_is_not_kept(source: Source, tmp_path: Path, work: str) -> None:
    """As many documents as before, so that only the file itself tells; a copy of the same content is no change."""
    file = Path(source.part.source)
    assert source.part.key  # fingerprints are taken where the parts are made, and travel with them
    travelled = pickle.loads(pickle.dumps(source))
    do = {"survey": lambda: survey(SurveyTask(travelled, str(tmp_path / "s"), "ef01", False)),
          "pack": lambda: pack_part(settings(tmp_path / "s"), pack_task(travelled, FATES))}[work]  # fmt: skip
    before = file.read_text()
    file.write_text(before.replace("end", "END"))
    with pytest.raises(CorpusError, match=r"a\.jsonl changed while it was packed; when"):
        do()
    assert not [p for p in (tmp_path / "s").rglob("*") if p.suffix == ".json" or "survey" in p.name]
    file.unlink()
    file.write_text(before)
    assert do().documents == 7


@pytest.mark.parametrize("text", ["\n \n", "短\n"])
def test_a_survey_without_a_document_has_signatures_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "blank.txt").write_text(text)
    task = SurveyTask(source_of(tmp_path / "blank.txt"), str(tmp_path / "store"), "ef01", True)
    for found in (survey(task), survey(task)):
        assert found.signatures_NK is not None and found.signatures_NK.shape == (0, 128)


def test_a_damaged_survey_is_made_again(source: Source, tmp_path: Path) -> None:
    task = SurveyTask(source, str(tmp_path / "store"), "ef01", True)
    whole = survey(task)
    kept = tmp_path / "store" / "ef" / "ef01.survey.arrow"
    for damaged in (b"", kept.read_bytes()[:300]):
        kept.write_bytes(damaged)
        assert np.array_equal(survey(task).hashes_N2, whole.hashes_N2)


def test_an_id_outside_the_vocabulary_is_no_block(source: Source, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="the vocabulary has 200"):
        pack_part(settings(tmp_path, vocabulary=200), pack_task(source, FATES))


def test_the_role_decides_what_cleaning_asks(source: Source, tmp_path: Path) -> None:
    asking = replace(source, clean=CleanConfig(min_han_share=0.5))
    assert pack_part(settings(tmp_path), PackTask(asking, "ab", ("train",), np.zeros(4, np.uint8))).dropped["low_han_share"] == 2
    old = replace(asking, role="old")
    assert "low_han_share" not in pack_part(settings(tmp_path), PackTask(old, "cd", ("train",), np.zeros(6, np.uint8))).dropped


def test_special_tokens_stand_around_each_document() -> None:
    ids, offsets = np.array([5, 6, 7], np.uint32), np.array([0, 2, 2, 3], np.int64)
    for start, end, expected, lengths in (
        (None, None, [5, 6, 7], [2, 0, 1]),
        (1, None, [1, 5, 6, 1, 1, 7], [3, 1, 2]),
        (None, 2, [5, 6, 2, 2, 7, 2], [3, 1, 2]),
        (1, 2, [1, 5, 6, 2, 1, 2, 1, 7, 2], [4, 2, 3]),
    ):
        out, out_lengths = with_ends(ids, offsets, start, end)
        assert out.tolist() == expected and out_lengths.tolist() == lengths


@given(st.lists(st.lists(st.integers(10, 99), max_size=4), max_size=6), st.booleans(), st.booleans())
def test_special_tokens_like_a_loop(documents: list[list[int]], start: bool, end: bool) -> None:
    ids = np.array([i for d in documents for i in d], np.uint32)
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    out, _ = with_ends(ids, offsets, 1 if start else None, 2 if end else None)
    assert out.tolist() == [i for d in documents for i in ([1] * start + d + [2] * end)]
