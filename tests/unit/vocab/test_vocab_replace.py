"""A tokenizer of the user's own, and special tokens alone: the stage without Ray, for nothing is learned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import run_data
from tiny_bases import bert_folder, bert_tokenizer, bloom_folder, gpt2_folder, gpt2_tokenizer, t5_folder
from trained_tokenizers import ENGLISH, chinese_texts
from zhlm.adapt.new_rows import new_rows_of
from zhlm.config.schema import RunConfig
from zhlm.errors import BaseModelError, ConfigError
from zhlm.model.load import load_model
from zhlm.storage import Run
from zhlm.tokenizer.load import load_tokenizer
from zhlm.tokenizer.special import document_token
from zhlm.vocab import job
from zhlm.vocab.tables import extension_lines


def config_at(folder: Path, vocab: dict[str, Any], **train: Any) -> RunConfig:
    (folder / "zh.txt").write_text("\n".join(chinese_texts()) + "\n", encoding="utf-8")
    (folder / "en.txt").write_text("\n".join(ENGLISH) + "\n", encoding="utf-8")
    return RunConfig.model_validate_json(json.dumps(run_data(folder, **train) | {"vocab": vocab}))


def done(config: RunConfig) -> tuple[dict[str, Any], Path]:
    """The facts of the stage, and its folder."""
    facts = job.run(config, lambda progress: None)
    json.dumps(facts)
    folder = Run.of(config).vocab.path
    (folder / "manifest.json").write_text(json.dumps({"facts": facts}))
    assert any(str(facts["rows_after"]) in line for line in extension_lines(facts, str(folder)))
    return facts, folder


def test_a_bert_tokenizer_for_a_gpt2(tmp_path: Path) -> None:
    base = gpt2_folder(tmp_path / "base")
    bert_tokenizer().save_pretrained(tmp_path / "own")
    facts, folder = done(config_at(tmp_path, {"tokenizer": str(tmp_path / "own"), "pad_to_multiple": 8}))
    before, after = load_tokenizer(str(base)), AutoTokenizer.from_pretrained(folder)
    assert type(after).__name__ == "BertTokenizer" and after.get_vocab() == bert_tokenizer().get_vocab()
    model, old = AutoModelForCausalLM.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(base)
    rows, old_rows = model.get_input_embeddings().weight, old.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is rows and len(rows) == facts["rows_after"] == -(-len(after) // 8) * 8
    assert facts["copied"] + facts["made"] == len(after) and facts["unspelled"] > 0
    assert torch.equal(rows[after.convert_tokens_to_ids("teacher")], old_rows[before.convert_tokens_to_ids("Ġteacher")])
    spelled = before("天", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(rows[after.convert_tokens_to_ids("天")], old_rows[spelled].mean(0))
    ids = (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id)
    assert ids == (after.cls_token_id, after.sep_token_id, after.pad_token_id) and model.generation_config.eos_token_id == ids[1]
    proof = json.loads((folder / "verify.json").read_text(encoding="utf-8"))
    assert proof["round_trip"].startswith("not asked: WordPiece") and 0 < proof["unknown"] < proof["tokens"]
    assert proof["engines"]["transformers"]["different"] == 0
    zh = facts["tokens_per_character"]["zh"]
    assert zh["before"] > 2 > 1.1 > zh["after"]
    assert f"{facts['copied']:,} copied, {facts['made']:,} made" in facts["summary"]


def test_byte_level_for_a_bloom_with_a_token_for_padding(tmp_path: Path) -> None:
    bloom_folder(tmp_path / "base")
    gpt2_tokenizer().save_pretrained(tmp_path / "own")
    vocab = {"tokenizer": str(tmp_path / "own"), "special_tokens": {"pad_token": "<|pad|>"}, "init": "mean_noise"}
    facts, folder = done(config_at(tmp_path, vocab))
    after, model = load_tokenizer(str(folder)), load_model(str(folder))
    assert facts["special_tokens"] == {"<|pad|>": len(after) - 1} == {"<|pad|>": model.config.pad_token_id}
    assert len(model.get_input_embeddings().weight) == len(after)
    back = json.loads((folder / "verify.json").read_text(encoding="utf-8"))["round_trip"]
    assert back == f"{facts['proved']['texts']:,} of {facts['proved']['texts']:,} texts come back"
    assert facts["copied"] >= len(after) - 2, "the same pieces, in other places"


def test_new_rows_only_where_old_ids_stay(tmp_path: Path) -> None:
    gpt2_folder(tmp_path / "base")
    bert_tokenizer().save_pretrained(tmp_path / "own")
    wrong = config_at(tmp_path, {"tokenizer": str(tmp_path / "own")}, embeddings="new_rows")
    with pytest.raises(
        ConfigError, match=r"new_rows, but the tokenizer .*/own has other ids for [\d,]+ tokens .* set train\.embeddings: all"
    ):
        job.run(wrong, lambda progress: None)
    larger = gpt2_tokenizer()
    larger.add_tokens(["图书馆", "公园"])
    larger.save_pretrained(tmp_path / "own")
    config = config_at(tmp_path, {"tokenizer": str(tmp_path / "own")}, embeddings="new_rows")
    facts, _ = done(config)
    assert (facts["added"], facts["made"], facts["moved"]) == (2, 2, 0)
    assert new_rows_of(config, Run.of(config)) == range(len(larger) - 2, len(larger))


def test_a_manifest_of_moved_rows_is_refused_for_new_rows(tmp_path: Path) -> None:
    gpt2_folder(tmp_path / "base")
    bert_tokenizer().save_pretrained(tmp_path / "own")
    config = config_at(tmp_path, {"tokenizer": str(tmp_path / "own")})
    done(config)
    later = config.model_copy(update={"train": config.train.model_copy(update={"embeddings": "new_rows"})})
    with pytest.raises(ConfigError, match=r"the vocab stage moved the old ones; set train\.embeddings: all"):
        new_rows_of(later, Run.of(later))


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    gpt2_folder(tmp_path / "base")
    (tmp_path / "own").mkdir()
    with pytest.raises(BaseModelError, match=r"the tokenizer .*/own cannot be had: tokenizer: the folder .* has none of tokenizer\.json"):
        job.run(config_at(tmp_path, {"tokenizer": str(tmp_path / "own")}), lambda progress: None)


SPECIAL = {"add_rows": 0, "special_tokens": {"pad_token": "<|pad|>", "mask_token": "[MASK]", "sentinels": 3}}


@pytest.mark.parametrize(("make", "new"), [(gpt2_folder, 5), (bloom_folder, 5), (bert_folder, 4), (t5_folder, 2)])
def test_special_tokens_alone(make: Callable[[Path], Path], new: int, tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    facts, folder = done(config_at(tmp_path, SPECIAL))
    before, after = load_tokenizer(str(base)), load_tokenizer(str(folder))
    old, model = load_model(str(base)), load_model(str(folder))
    assert (facts["added"], facts["rows_after"]) == (new, len(before) + new) and len(after) == len(before) + new
    assert (after.pad_token, after.mask_token) == ("<|pad|>", "[MASK]") and model.config.pad_token_id == after.pad_token_id
    for now, then in (
        (model.get_input_embeddings(), old.get_input_embeddings()),
        (model.get_output_embeddings(), old.get_output_embeddings()),
    ):
        assert torch.equal(now.weight[: len(before)], then.weight)
        torch.testing.assert_close(now.weight[len(before) :], then.weight.mean(0).expand(new, -1))
    text = "今天 the teacher"
    assert after(text, add_special_tokens=False)["input_ids"] == before(text, add_special_tokens=False)["input_ids"]
    assert json.loads((folder / "verify.json").read_text(encoding="utf-8"))["texts"] > len(ENGLISH)
    assert document_token(after, "eos") == document_token(before, "eos")
    config = config_at(tmp_path, SPECIAL, embeddings="new_rows")
    assert new_rows_of(config, Run.of(config)) == range(len(before), len(before) + new)


def test_special_tokens_that_are_there_add_no_row(tmp_path: Path) -> None:
    bert_folder(tmp_path / "base")
    facts, _ = done(config_at(tmp_path, {"add_rows": 0, "special_tokens": {"bos_token": "[CLS]", "eos_token": "[unused1]"}}))
    assert facts["added"] == 0 and facts["special_tokens"]["[unused1]"] == 1
    config = config_at(tmp_path, SPECIAL, embeddings="new_rows")
    with pytest.raises(ConfigError, match="the vocab stage added none"):
        new_rows_of(config, Run.of(config))
