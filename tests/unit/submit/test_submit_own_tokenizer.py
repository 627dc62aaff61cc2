"""A tokenizer of the user's own in a plan and in the checks before a run, and the recipes as they are planned."""

import re
from pathlib import Path

import pytest

from tiny_bases import bert_tokenizer, gpt2_folder
from zhlm.config.load import load_config
from zhlm.errors import BaseModelError
from zhlm.model.shape import parameters
from zhlm.submit.plan import format_plan, make_plan
from zhlm.submit.preflight import check
from zhlm.submit.sources import added_rows, trained_shape

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    gpt2_folder(folder / "base")
    bert_tokenizer().save_pretrained(folder / "own")
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text("眼角斜瞥着柳翎。萧炎淡淡的道。\n" * 20, encoding="utf-8")
    return folder


def settings(folder: Path, *more: str) -> list[str]:
    """A recipe on a tiny base of its class, here."""
    base, root = f"base.model={folder}/base", f"storage.root={folder}/runs"
    return [base, root, f"streams.0.paths=[{folder}/a.txt, {folder}/b.txt]", "resources.workers=2", "resources.gpus_per_worker=0", *more]


def test_recipe_a_is_planned_with_the_rows_of_its_tokenizer(folder: Path) -> None:
    config = load_config(CONFIGS / "wenzhong_gpt2_lora_zero2.yaml", settings(folder, f"vocab.tokenizer={folder}/own"))
    check(config)
    shape, final = trained_shape(config)
    assert (shape.vocabulary, final, added_rows(config)) == (len(bert_tokenizer()), False, 0)
    text = format_plan(make_plan(config))
    assert "2,500 of 80,000 blocks" in text and "the last 3 and the best kept" in text and "ZeRO 2" in text
    lora = 2 * 8 * (32 + 3 * 32)
    assert f"{parameters(shape)['embeddings'] + lora:,}" in text, "c_attn of two layers, and the one matrix of wte and lm_head"


def test_recipe_c_is_planned_with_a_row_for_padding(folder: Path) -> None:
    files = f"streams.0.held_out=[{folder}/c.txt]"
    config = load_config(CONFIGS / "gpt2_medium_full.yaml", settings(folder, files))
    check(config)
    assert added_rows(config) == 1
    assert config.train.lora is None and config.train.learning_rate == 1e-5
    text = format_plan(make_plan(config))
    assert "(100.0%)" in text
    frozen = load_config(CONFIGS / "gpt2_medium_full.yaml", settings(folder, files, "train.freeze={first_layers: 1}"))
    assert "(100.0%)" not in format_plan(make_plan(frozen))


def test_the_variant_of_recipe_c_is_as_the_comment_has_it() -> None:
    text = (CONFIGS / "gpt2_medium_full.yaml").read_text(encoding="utf-8")
    assert re.search(r"# freeze: \{first_layers: 12\}", text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere/at/all", "vocab: the folder nowhere/at/all does not exist"),
        ("{folder}", "has no tokenizer, expected one of tokenizer.json"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_one_line(folder: Path, name: str, said: str) -> None:
    config = load_config(CONFIGS / "wenzhong_gpt2_lora_zero2.yaml", settings(folder, f"vocab.tokenizer={name.format(folder=folder)}"))
    with pytest.raises(BaseModelError) as caught:
        check(config)
    assert said in str(caught.value) and "vocab.tokenizer" in str(caught.value) and "\n" not in str(caught.value)
