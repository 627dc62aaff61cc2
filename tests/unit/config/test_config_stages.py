"""Which stage is touched by which change, and how a change is told."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from conftest import run_data
from zhlm.config.schema import RunConfig
from zhlm.config.stages import STAGES, Stage, differences, reads, wanted_stages


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
        ({"streams__0__weight": 9.0}, "train"),
        ({"pack__block_tokens": 16}, "pack"),
        ({"pack__clean__min_chars": 9}, "pack"),
        ({"train__steps": 9}, "train"),
        ({"train__learning_rate": 1e-5}, "train"),
        ({"train__zero_stage": 3}, "train"),
        ({"train__lora__r": 2}, "train"),
        ({"train__log_every": 99}, ""),
        ({"train__validate_every": 99}, ""),
        ({"train__validation_blocks": 99}, ""),
        ({"train__checkpoint_every": 99}, ""),
        ({"train__keep_checkpoints": 99}, ""),
        ({"evaluate__prompts": ["秋"]}, "evaluate"),
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


def test_every_section_is_read_by_a_stage_or_known_not_to_be() -> None:
    """A new section that nobody reads would change a run without redoing anything."""
    read = {key for stage in STAGES for key in reads(config(), stage)} | {"name", "storage", "resources", "serve"}
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
