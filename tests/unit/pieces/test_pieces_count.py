# ruff: noqa: F401, F811 - fixtures are imported by name
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from trained_tokenizers import chinese, english, gpt2_tokenizer, train_wordpiece
from zhlm.config.schema import StreamConfig
from zhlm.corpus.files import find_files
from zhlm.pieces import count
from zhlm.pieces.bytelevel import ByteLevel
from zhlm.pieces.count import count_file, plan_counts, thin
from zhlm.tokenizer.load import tokenizer_json


def corpus(folder: Path, chinese: list[str], english: list[str]) -> tuple[list[StreamConfig], dict[str, list[count.SourceFile]]]:
    (folder / "a.txt").write_text("\n".join(chinese[:100]), encoding="utf-8")
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"words": t}) for t in chinese[100:]), encoding="utf-8")
    (folder / "en.txt").write_text("\n".join(english), encoding="utf-8")
    streams = [
        StreamConfig(name="zh", paths=["zh"], role="new", field="words"),
        StreamConfig(name="en", paths=["en"], role="old"),
    ]
    return streams, {"zh": find_files([str(folder / "a.txt"), str(folder / "b.jsonl")]), "en": find_files([str(folder / "en.txt")])}


def test_all_of_a_small_corpus_is_counted(
    gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str], tmp_path: Path
) -> None:
    streams, files = corpus(tmp_path, chinese, english)
    tasks = plan_counts(streams, files)
    found = [count_file(task, tokenizer_json(gpt2_tokenizer)) for task in tasks]
    assert [task.stream for task in tasks] == ["zh", "zh", "en"]
    assert [c.documents for c in found] == [100, 200, 0]
    assert [len(c.sample) for c in found] == [100, 200, len(english)]
    base = ByteLevel.of(gpt2_tokenizer.backend_tokenizer)
    assert sum(found[0].pre_tokens.values()) == sum(len(base.pre_tokens(t)) for t in chinese[:100])
    assert not found[2].pre_tokens


def test_a_large_corpus_is_shared_by_size(
    gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(count, "LEARN_CHARS", 600)
    monkeypatch.setattr(count, "SAMPLE_CHARS", 300)
    streams, files = corpus(tmp_path, chinese, english)
    found = [count_file(task, tokenizer_json(gpt2_tokenizer)) for task in plan_counts(streams, files)]
    longest = max(map(len, chinese))
    assert 600 <= found[0].characters + found[1].characters <= 600 + 2 * (longest + 1)
    assert found[0].characters < found[1].characters
    assert 300 <= sum(len(t) for c in found[:2] for t in c.sample) <= 300 + 2 * (longest + 1)
    assert len(found[2].sample) < len(english)


def test_a_dataset_of_unknown_size_has_its_share(tmp_path: Path) -> None:
    """It counts as a large file."""
    (tmp_path / "a.txt").write_text("x")
    (file,) = find_files([str(tmp_path / "a.txt")])
    unknown = replace(file, size_bytes=0)
    streams = [StreamConfig(name="zh", role="new", paths=["x"]), StreamConfig(name="en", role="old", paths=["x"])]
    zh, also_zh, en = plan_counts(streams, {"zh": [file, unknown], "en": [unknown]})
    assert (zh.learn_chars, also_zh.learn_chars, en.sample_chars) == (1, count.LEARN_CHARS, count.SAMPLE_CHARS)


def test_old_text_is_proved_as_far_as_new_text(
    gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a WordPiece base has all its words counted, not those of the sample alone."""
    monkeypatch.setattr(count, "SAMPLE_CHARS", 30)
    streams, files = corpus(tmp_path, chinese, english)
    *_, old = plan_counts(streams, files)
    assert list(count.read_task(old, old.prove_chars)) == english
    assert not count_file(old, tokenizer_json(gpt2_tokenizer)).words
    wordpiece = train_wordpiece()
    found = count_file(old, tokenizer_json(wordpiece))
    assert found.words == {word for text in english for word in count.take_apart(wordpiece.backend_tokenizer).pre_tokens(text)}
    assert len(found.sample) == 1 and not found.pre_tokens
    monkeypatch.setattr(count, "LEARN_CHARS", 600)
    *_, old = plan_counts(streams, files)
    assert 600 <= sum(map(len, count.read_task(old, old.prove_chars))) < 700


def test_a_large_file_is_counted_in_pieces(
    gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, files = corpus(tmp_path, chinese, english)
    whole = sum((count_file(t, tokenizer_json(gpt2_tokenizer)).pre_tokens for t in plan_counts(streams, files)), Counter[str]())
    monkeypatch.setattr(count, "PIECE_BYTES", 2000)
    tasks = plan_counts(streams, files)
    found = [count_file(task, tokenizer_json(gpt2_tokenizer)) for task in tasks]
    assert len(tasks) > 10
    assert sum((c.pre_tokens for c in found), Counter[str]()) == whole
    assert sum(c.documents for c in found) == len(chinese) and sum(c.dropped for c in found) == 0


def test_a_count_beyond_memory_is_thinned(
    gpt2_tokenizer: PreTrainedTokenizerFast, chinese: list[str], english: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(count, "MAX_SYMBOLS", 900)
    monkeypatch.setattr(count, "THIN_CHARS", 500)
    streams, files = corpus(tmp_path, chinese, english)
    tasks = plan_counts(streams, files)
    found = [count_file(task, tokenizer_json(gpt2_tokenizer)) for task in tasks]
    assert found == [count_file(task, tokenizer_json(gpt2_tokenizer)) for task in tasks]
    assert sum(len(p) for c in found for p in c.pre_tokens) <= 900 + len(tasks)
    assert found[0].dropped > 0 and found[0].documents == 100


def test_thinning_keeps_sums_on_average_and_what_is_frequent() -> None:
    counts = Counter({f"rare{n:04}": 1 + n % 3 for n in range(2000)}) | Counter({"often": 5000, "of": 300})
    totals = []
    for seed in range(60):
        thinned = Counter(counts)
        assert thin(thinned, 4000, random.Random(seed)) == len(counts) - len(thinned)
        assert sum(map(len, thinned)) <= 4000
        assert (thinned["often"], thinned["of"]) == (5000, 300)
        totals.append(sum(n for word, n in thinned.items() if word.endswith("7")))
    exact = sum(n for word, n in counts.items() if word.endswith("7"))
    assert sum(totals) / len(totals) == pytest.approx(exact, rel=0.05)


def test_what_has_room_is_not_thinned() -> None:
    counts = Counter({"a": 1, "b": 2})
    assert thin(counts, 2, random.Random(0)) == 0 and counts == {"a": 1, "b": 2}
    assert thin(Counter[str](), 0, random.Random(0)) == 0
