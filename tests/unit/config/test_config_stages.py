"""Which stage is touched by which change, and how a change is told."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from conftest import run_data
from zhlm.config.schema import RunConfig
from zhlm.config.stages import STAGES, Stage, differences, packing_cpus, reads, trains_while_packing, wanted_stages
from zhlm.errors import ClusterError, ConfigError


def config(**changes: Any) -> RunConfig:
    """A config with sample and vocab; `train__steps=3` changes one field."""
    data = run_data(Path("/nowhere")) | {
        "sample": {"corpus": {}, "base": {"paths": ["sample://en.txt"]}}, "vocab": {}, "evaluate": {"prompts": ["春"]},
    }  # fmt: skip
    for key, value in changes.items():
        *parents, last = key.split("__")
        node: Any = data
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
        node[last] = value
    return RunConfig.model_validate_json(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"seed": 8}, "sample pack train"),
        ({"sample__corpus__documents": 9}, "sample"),
        ({"base__model": "other/model"}, "vocab pack train"),
        ({"base__revision": "v2"}, "vocab pack train"),
        ({"vocab__add_rows": 9}, "vocab"),
        ({"streams__0__paths": ["x"]}, "vocab pack"),
        ({"streams__1__paths": ["x"]}, "pack"),
        ({"streams__1__held_out": ["x"]}, "pack"),
        ({"streams__0__skip_non_text": True}, "vocab pack"),
        ({"pack__truncate": True}, "pack"),
        ({"streams__0__weight": 9.0}, "train"),
        ({"pack__block_tokens": 16}, "pack"),
        ({"pack__clean__min_chars": 9}, "pack"),
        ({"objective": "prefix"}, "train"),
        ({"train__steps": 9}, "train"),
        ({"train__learning_rate": 1e-5}, "train"),
        ({"train__zero_stage": 3}, "train"),
        ({"train__lora__r": 2}, "train"),
        ({"train__lora__plus_ratio": 16.0}, "train"),
        ({"train__rate_factors": {".*": 2.0}}, "train"),
        ({"train__schedule": "wsd"}, "train"),
        ({"train__lora": None, "train__freeze": {"embeddings": False, "first_layers": 1}}, "train"),
        ({"train__lora": None, "base__from_scratch": True}, "vocab pack train"),
        ({"train__log_every": 99}, ""),
        ({"train__trackers": ["wandb"]}, ""),
        ({"train__early_stop": {"patience": 2}}, "train"),
        ({"train__validate_every": 99}, ""),
        ({"train__validation_blocks": 99}, ""),
        ({"train__checkpoint_every": 99}, ""),
        ({"train__keep_checkpoints": 99, "train__keep_best": 0}, ""),
        ({"train__start": "after_packing"}, ""),
        ({"train__trace_blocks": True}, ""),
        ({"pack__shard_bytes": 99}, "pack"),
        ({"pack__near_duplicates": 0.8}, "pack"),
        ({"streams__0__document": "file"}, "vocab pack"),
        ({"streams__0__max_repeats": 3.0}, ""),
        ({"evaluate__prompts": ["秋"]}, "evaluate"),
        ({"evaluate__generate": {"max_new_tokens": 5}}, "export evaluate"),
        ({"evaluate__generate": {"seed": 5}}, "evaluate"),
        ({"serve": {"port": 9}}, ""),
        ({"resources__workers": [1, 4]}, ""),
        ({"resources__pack_tasks": 9}, ""),
        ({"resources__cpus_per_worker": 9.0}, ""),
        ({"storage__root": "/elsewhere"}, ""),
        ({"name": "other"}, ""),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)  # fmt: skip
def test_a_change_touches_exactly_these_stages(change: dict[str, Any], touched: str) -> None:
    before, after = config(), config(**change)
    assert before != after
    assert [s for s in STAGES if reads(before, s) != reads(after, s)] == touched.split()


def test_the_rhythm_of_measurements_counts_where_they_end_the_training() -> None:
    stops = {"train__early_stop": {}}
    for change in ({"train__validate_every": 99}, {"train__validation_blocks": 99}):
        assert reads(config(**stops), "train") != reads(config(**stops, **change), "train")
        assert reads(config(), "train") == reads(config(**change), "train")


def test_what_was_trained_before_there_were_other_objectives_stays_finished() -> None:
    assert reads(config(objective="causal"), "train").keys() == {"base", "train", "weights", "seed"}
    settings = {"name": "prefix", "min_share": 0.2}
    assert reads(config(objective=settings), "train")["objective"] == settings | {"max_share": 0.9}


def test_vocabularies_from_before_there_were_other_ways_stay_finished() -> None:
    assert not {"special_tokens", "tokenizer"} & reads(config(vocab={}), "vocab")["vocab"].keys()
    other = {"tokenizer": "org/other", "special_tokens": {"sentinels": 3}}
    assert other.keys() <= reads(config(vocab=other), "vocab")["vocab"].keys()


def test_every_section_is_read_by_a_stage_or_known_not_to_be() -> None:
    """A new section that nobody reads would change a run without redoing anything."""
    read = {key for stage in STAGES for key in reads(config(objective="prefix"), stage)} | {"name", "storage", "resources", "serve"}
    assert set(RunConfig.model_fields) <= read


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_reads_is_plain_data(stage: Stage) -> None:
    part = reads(config(), stage)
    assert json.loads(json.dumps(part)) == part


def test_sample_and_vocab_run_only_where_asked() -> None:
    assert wanted_stages(config()) == STAGES == get_args(Stage)
    assert wanted_stages(config(sample=None, vocab=None)) == ("pack", "train", "export", "evaluate")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({"train": {"steps": 1, "r": 2}}, {"train": {"steps": 3, "r": 2}}, ["train.steps: 1 -> 3"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a.1: 2 -> 3"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a: [1] -> [1, 2]"]),
        ({"a": 1, "gone": 2}, {"a": 1, "new": 3}, ["new: None -> 3", "gone: 2 -> None"]),
        ({"a": {"b": 1}}, {"a": None}, ["a: {'b': 1} -> None"]),
        ({"a": {"b": 1}}, {"a": {"b": 1}}, []),
    ],
)
def test_differences_name_the_place_and_both_values(old: Any, new: Any, told: list[str]) -> None:
    assert differences(old, new) == told


BIG = 256 << 20
ROOMY = {"CPU": 3.0}


@pytest.mark.parametrize(
    ("start", "source_bytes", "most", "expected"),
    [
        ("auto", BIG, ROOMY, True),
        ("auto", BIG - 1, ROOMY, False),
        ("auto", BIG, {"CPU": 2.5}, False),
        ("auto", BIG, None, True),
        ("with_packing", 1, ROOMY, True),
        ("with_packing", 1, None, True),
        ("after_packing", BIG, ROOMY, False),
    ],
)
def test_training_begins_while_packing_where_it_is_worth_it_and_there_is_room(
    start: str, source_bytes: int, most: dict[str, float] | None, expected: bool
) -> None:
    assert trains_while_packing(config(train__start=start), source_bytes, most) is expected


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"train__steps": None, "train__epochs": 2.0}, ConfigError, "epochs are counted when all is packed; set train.steps"),
        ({"pack__packing": "none"}, ConfigError, "pack.packing is none"),
        ({"streams__1__max_repeats": 3.0}, ConfigError, "the repeats of stream en are known when all is packed; remove its max_repeats"),
        ({"resources__workers": 3}, ClusterError, "can have 3 CPU and the workers take 3 x 1, expected 1 more for packing"),
        ({"resources__cpus_per_worker": 1.25}, ClusterError, "2 x 1.25"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_what_stands_in_the_way_is_said_only_to_who_asked(change: dict[str, Any], error: type[Exception], said: str) -> None:
    assert trains_while_packing(config(**change), BIG, ROOMY) is False
    with pytest.raises(error, match=r"^train: start is with_packing, but") as caught:
        trains_while_packing(config(train__start="with_packing", **change), BIG, ROOMY)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert trains_while_packing(config(train__start="after_packing", **change), BIG, ROOMY) is False


@pytest.mark.parametrize(
    ("workers", "each", "gpus", "most", "left"),
    [
        (2, 1.0, 0.0, {"CPU": 4.0}, 2),
        (2, 0.5, 0.0, {"CPU": 2.0}, 1),
        ([1, 4], 1.0, 0.0, {"CPU": 4.0}, 0),
        ([1, 64], 2.0, 1.0, {"CPU": 32.0, "GPU": 8.0}, 16),
        (2, 1.0, 0.0, {}, -2),
    ],
)
def test_packing_gets_what_the_most_workers_leave(workers: Any, each: float, gpus: float, most: dict[str, float], left: int) -> None:
    made = config(resources__workers=workers, resources__cpus_per_worker=each, resources__gpus_per_worker=gpus)
    assert packing_cpus(made, most) == left


def test_what_was_packed_before_there_were_newer_settings_stays_finished() -> None:
    assert all("skip_non_text" not in stream for stage in ("vocab", "pack") for stream in reads(config(), stage)["streams"])
    assert "truncate" not in reads(config(), "pack")["pack"]
