"""What a checkpoint was made for is told by content, not by place."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import run_data, save_tiny_llama
from zhlm.checkpoint.made_for import made_for
from zhlm.config.schema import RunConfig
from zhlm.storage import Run
from zhlm.tokenizer.load import load_tokenizer


def of(base: Path, **settings: Any) -> dict[str, str | int]:
    data = run_data(base.parent) | {"base": {"model": str(base)}} | settings
    config = RunConfig.model_validate(data)
    return made_for(config, Run.of(config))


def test_a_base_that_moves_is_the_same_and_another_one_is_not(tmp_path: Path) -> None:
    here = save_tiny_llama(tmp_path / "here" / "base")
    moved = Path(shutil.copytree(here, tmp_path / "there" / "base"))
    first = of(here)
    assert first == of(moved)
    assert first["block_tokens"] == 32 and first["objective"] == "causal" and str(first["base"]).startswith("base (")
    assert of(here, pack={"block_tokens": 16}) == first | {"block_tokens": 16}

    save_tiny_llama(moved, width=64)
    assert {name for name, value in of(moved).items() if value != first[name]} == {"base"}
    save_tiny_llama(moved, vocabulary=90)
    assert {name for name, value in of(moved).items() if value != first[name]} == {"base", "tokenizer"}


def test_an_objective_counts_with_its_settings(tmp_path: Path) -> None:
    base = save_tiny_llama(tmp_path / "base")
    first = of(base)
    masked = first | {"objective": "masked (mask_share 0.15, mask_token_share 0.8, random_share 0.1, whole_words False)"}
    assert of(base, objective="masked") == of(base, objective={"name": "masked", "mask_share": 0.15}) == masked
    assert of(base, objective={"name": "prefix", "max_share": 0.5}) == first | {"objective": "prefix (min_share 0.1, max_share 0.5)"}
    assert of(base, objective="causal") == first, "a checkpoint from before there were others says causal too"


def test_a_hub_model_counts_by_name_and_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(str(save_tiny_llama(tmp_path / "base")))
    monkeypatch.setattr("zhlm.checkpoint.made_for.load_tokenizer", lambda *_: tokenizer)
    data = run_data(tmp_path) | {"base": {"model": "org/model"}}
    named, tagged = (RunConfig.model_validate(data | {"base": data["base"] | more}) for more in ({}, {"revision": "v1"}))
    first = made_for(named, Run.of(named))
    assert first["base"] == "org/model" and "revision" not in first
    assert made_for(tagged, Run.of(tagged)) == first | {"revision": "v1"}
