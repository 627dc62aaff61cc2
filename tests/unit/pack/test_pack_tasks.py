"""What is done to one file, without Ray."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from zhlm.blocks.store import open_shard
from zhlm.config.schema import CleanConfig
from zhlm.corpus.files import find_files
from zhlm.errors import CorpusError, VerificationError
from zhlm.pack import tasks
from zhlm.pack.split import Fate
from zhlm.pack.tasks import FileTask, PackTask, Settings, on_row, pack_file, survey, with_ends
from zhlm.storage import Place

DOCUMENTS = ["今天  天气很好。", "短", "臺灣\x00龍", "生僻字𠮷", "👨‍👩‍👧", "今天 天气很好。", "end"]
"""Cleaned, the sixth is a copy of the first."""


@pytest.fixture
def task(tmp_path: Path) -> FileTask:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in DOCUMENTS))
    return FileTask("zh", "new", find_files([str(path)])[0], None, CleanConfig(), sample_characters=100)


def byte_tokenizer() -> str:
    """Ids 0..255 are the bytes in the order of the byte-level alphabet, 256 is the end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return str(tokenizer.to_str())


def settings(**changes: object) -> Settings:
    values = {
        "tokenizer_json": byte_tokenizer(), "engine": "tokenizers", "parallel": False, "vocabulary": 257, "block_tokens": 32,
        "packing": "best_fit", "start_id": None, "end_id": 256,
    }  # fmt: skip
    return Settings(**{**values, **changes})  # type: ignore[arg-type]


def pack_task(task: FileTask, folder: Path, fates: list[Fate], held_out_texts: int = 10) -> PackTask:
    return PackTask(task, 3, str(folder / "zh"), np.array(fates, np.uint8), ("train", "validation"), held_out_texts)


FATES = [Fate.TRAIN, Fate.VALIDATION, Fate.TRAIN, Fate.IN_HELD_OUT, Fate.DUPLICATE, Fate.TRAIN]


def test_a_survey_counts_hashes_and_samples(task: FileTask) -> None:
    found = survey(task)
    assert found.documents == 7
    assert found.dropped == {"too_short": 1}
    assert len(found.hashes) == 6 * 16
    assert found.hashes[:16] == found.hashes[4 * 16 : 5 * 16]
    assert [(r.reason, r.row, r.text) for r in found.rejects] == [("too_short", 2, "短")]
    assert found.sample[:2] == ["今天 天气很好。", "臺灣龍"]


def test_rejects_and_samples_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("一\n" * 50 + "很长的一句话。\n" * 50, encoding="utf-8")
    found = survey(FileTask("zh", "new", find_files([str(path)])[0], None, CleanConfig(), sample_characters=10))
    assert found.dropped == {"too_short": 50} and len(found.rejects) == 20
    assert len(found.sample) == 2


def test_every_fate_ends_where_it_should(task: FileTask, tmp_path: Path) -> None:
    packed = pack_file(settings(), pack_task(task, tmp_path, FATES))
    train, validation = packed.shards["train"], packed.shards["validation"]
    assert (train.documents, validation.documents) == (3, 1)
    assert packed.dropped == {"in_held_out": 1, "duplicate": 1}
    assert [(r.reason, r.row, r.text) for r in packed.rejects] == [("in_held_out", 5, "👨‍👩‍👧"), ("duplicate", 6, "今天 天气很好。")]
    assert packed.held_out == ["臺灣龍"]
    kept = ["今天 天气很好。", "生僻字𠮷", "end"]
    assert train.characters == sum(map(len, kept)) and train.utf8_bytes == sum(len(t.encode()) for t in kept)
    assert train.tokens == train.utf8_bytes + 3, "a token per byte, and an end for each document"
    assert train.file == "shard-00003.arrow" and train.source == task.file.path
    table = open_shard(Place(tmp_path / "zh" / "train"), train)
    assert sum(e[-1] for e in table.column("document_ends").to_pylist()) == train.tokens


def test_a_split_that_is_not_asked_for_gets_no_shard(task: FileTask, tmp_path: Path) -> None:
    asked = PackTask(task, 0, str(tmp_path / "zh"), np.zeros(6, np.uint8), ("train",), 0)
    assert set(pack_file(settings(), asked).shards) == {"train"}
    assert not (tmp_path / "zh" / "validation").exists()


def test_held_out_texts_are_capped(task: FileTask, tmp_path: Path) -> None:
    packed = pack_file(settings(), pack_task(task, tmp_path, [Fate.VALIDATION] * 6, held_out_texts=2))
    assert packed.held_out == ["今天 天气很好。", "臺灣龍"]
    assert packed.shards["validation"].documents == 6


def test_the_order_is_that_of_the_file_whatever_the_batches(task: FileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pack_file(settings(), pack_task(task, tmp_path, FATES))
    kept_batches = tasks._kept_batches
    monkeypatch.setattr(tasks, "_kept_batches", lambda task, packed: kept_batches(task, packed, batch_characters=1))
    assert pack_file(settings(), pack_task(task, tmp_path, FATES)).shards == whole.shards


@pytest.mark.parametrize("num_fates", [5, 7])
def test_a_file_that_changed_since_the_survey_is_refused(task: FileTask, tmp_path: Path, num_fates: int) -> None:
    with pytest.raises(CorpusError, match="changed while it was read"):
        pack_file(settings(), pack_task(task, tmp_path, [Fate.TRAIN] * num_fates))


def test_an_id_outside_the_vocabulary_is_no_block(task: FileTask, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="the vocabulary has 200"):
        pack_file(settings(vocabulary=200), pack_task(task, tmp_path, FATES))


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


def test_a_row_carries_tasks_and_results() -> None:
    row = on_row(sorted, {"index": 4, "task": pickle.dumps([2, 1])})
    assert row["index"] == 4 and pickle.loads(row["result"]) == [1, 2]


def test_an_error_of_ours_travels_as_a_result() -> None:
    def fails(_: object) -> None:
        raise CorpusError("corpus: a.txt line 3: broken", path="a.txt", line=3)

    error = pickle.loads(on_row(fails, {"index": 0, "task": pickle.dumps(None)})["result"])
    assert isinstance(error, CorpusError) and error.facts == {"path": "a.txt", "line": 3}
