"""Keys change with what decides the blocks, and with nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import run_data
from zhlm.config.schema import RunConfig
from zhlm.errors import CorpusError
from zhlm.pack.dedup import hashes_of
from zhlm.pack.planning import Stream, find_stream, held_out_hashes, make_plan, pack_tasks, recipe_of, survey_tasks
from zhlm.pack.split import Fate
from zhlm.pack.survey import Survey
from zhlm.pack.tasks import Settings


def config_of(folder: Path, **pack: Any) -> RunConfig:
    data = run_data(folder)
    data["streams"] = [{"name": "zh", "role": "new", "paths": [str(folder / "corpus")]}]
    data["pack"] = {"block_tokens": 32, "shard_bytes": 300, "validation_share": 0.2, **pack}
    return RunConfig.model_validate_json(json.dumps(data))


def settings(**changes: Any) -> Settings:
    values = {
        "store": "", "tokenizer_json": "", "engine": "tokenizers", "cuts": None, "parallel": False, "vocabulary": 257, "block_tokens": 32,
        "packing": "best_fit", "start_id": None, "end_id": 256,
    }  # fmt: skip
    return Settings(**{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "corpus" / f"{name}.txt").write_text("\n".join(f"{name} sentence {i}" for i in range(15)))
    return tmp_path


def surveyed(config: RunConfig) -> Stream:
    stream = find_stream(config.streams[0], config, str)
    for task in survey_tasks(stream, config.pack, "store"):
        texts = [f"{task.source.part.key} {i}" for i in range(15)]
        stream.surveys[task.source.part.key] = Survey.joined([Survey.of_texts(texts, task.signatures)], [np.zeros(15, np.uint8)], {})
    return stream


def keys(config: RunConfig, tokenizer: str = "t", **changes: Any) -> list[str]:
    tasks = pack_tasks([surveyed(config)], config.pack, recipe_of(settings(**changes), tokenizer, config.pack))
    return [t.key for t in tasks["zh"]]


def test_a_key_is_what_decides_the_blocks(folder: Path) -> None:
    config = config_of(folder)
    before = keys(config)
    assert len(set(before)) == 3 and keys(config) == before
    assert set(keys(config, engine="gigatoken")).isdisjoint(before)
    assert set(keys(config, tokenizer="other")).isdisjoint(before)
    assert set(keys(config, block_tokens=64)).isdisjoint(before)
    assert set(keys(config_of(folder, clean={"min_chars": 5}))).isdisjoint(before)
    assert set(keys(config, parallel=True, store="elsewhere")) == set(before)


def test_names_and_other_parts_decide_nothing(folder: Path) -> None:
    before = keys(config_of(folder))
    (folder / "corpus" / "b.txt").rename(folder / "corpus" / "z.txt")
    assert keys(config_of(folder)) == before
    (folder / "corpus" / "new.txt").write_text("\n".join(f"new sentence {i}" for i in range(15)))
    assert set(before) < set(keys(config_of(folder)))


def test_only_what_must_be_known_before_is_surveyed(folder: Path) -> None:
    config = config_of(folder)
    stream = find_stream(config.streams[0], config, str)
    assert len(survey_tasks(stream, config.pack, "store")) == 3
    once = config_of(folder, deduplicate=False)
    assert survey_tasks(stream, once.pack, "store") == []
    near = {t.key for t in survey_tasks(stream, config_of(folder, near_duplicates=0.8).pack, "store")}
    assert near.isdisjoint({t.key for t in survey_tasks(stream, config.pack, "store")}), "a survey without signatures is no help"


def test_without_a_survey_documents_decide_for_themselves(folder: Path) -> None:
    config = config_of(folder, deduplicate=False)
    tasks = pack_tasks([find_stream(config.streams[0], config, str)], config.pack, recipe_of(settings(), "t", config.pack))["zh"]
    assert [t.fates for t in tasks] == [None] * 3 and all(t.share == 0.2 for t in tasks)


def test_held_out_parts_come_last_and_are_validated_on(folder: Path) -> None:
    (folder / "held.txt").write_text("\n".join(f"held sentence {i}" for i in range(15)))
    data = json.loads(config_of(folder).model_dump_json())
    data["streams"][0]["held_out"] = [str(folder / "held.txt")]
    config = RunConfig.model_validate_json(json.dumps(data))
    stream = surveyed(config)
    tasks = pack_tasks([stream], config.pack, recipe_of(settings(), "t", config.pack))
    plan = make_plan(tasks, {})
    assert plan.of_split("zh", "train") == [0, 1, 2] and plan.of_split("zh", "validation") == [3]
    fates = tasks["zh"][3].fates
    assert fates is not None and np.all(fates == Fate.VALIDATION)


def test_a_stream_that_would_be_empty_is_refused(folder: Path) -> None:
    config = config_of(folder, validation_share=1e-9)
    with pytest.raises(CorpusError, match="holds out none of the 45 documents of stream zh"):
        keys(config)


@pytest.mark.parametrize("deduplicate", [True, False])
def test_what_one_stream_validates_on_no_other_trains_on(folder: Path, deduplicate: bool) -> None:
    data = json.loads(config_of(folder, deduplicate=deduplicate).model_dump_json())
    (folder / "held.txt").write_text("held sentence")
    data["streams"].append(data["streams"][0] | {"name": "en", "role": "old", "held_out": [str(folder / "held.txt")]})
    config = RunConfig.model_validate_json(json.dumps(data))
    zh, en = (find_stream(s, config, str) for s in config.streams)
    (held,) = en.held_out
    en.surveys[held.part.key] = Survey.joined([Survey.of_texts(["held sentence"], False)], [np.zeros(1, np.uint8)], {})
    for source in zh.training if deduplicate else []:
        texts = [*(f"{source.part.key} {i}" for i in range(20)), f"held sentence{'' if source is zh.training[0] else ' not'}"]
        for stream in (zh, en):
            stream.surveys[source.part.key] = Survey.joined([Survey.of_texts(texts, False)], [np.zeros(21, np.uint8)], {})
    tasks = pack_tasks([zh, en], config.pack, recipe_of(settings(), "t", config.pack))
    if not deduplicate:
        assert held_out_hashes([zh, en], config.pack).tolist() == hashes_of(["held sentence"]).tolist()
        other = Survey.joined([Survey.of_texts(["another"], False)], [np.zeros(1, np.uint8)], {})
        en.surveys[held.part.key] = other
        again = pack_tasks([zh, en], config.pack, recipe_of(settings(), "t", config.pack))
        assert {t.key for t in tasks["zh"]}.isdisjoint({t.key for t in again["zh"]})
        return
    for of_zh, of_en in zip(tasks["zh"], tasks["en"], strict=False):
        assert of_zh.fates is not None and of_en.fates is not None
        assert np.array_equal(of_en.fates == Fate.IN_HELD_OUT, (of_zh.fates == Fate.VALIDATION) | (of_zh.fates == Fate.IN_HELD_OUT))
    assert sum(int((t.fates == Fate.IN_HELD_OUT).sum()) for t in tasks["zh"] if t.fates is not None) >= 1
