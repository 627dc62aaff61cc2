"""Which two models are compared."""

import json
from pathlib import Path
from typing import Any

import torch

from conftest import run_data, save_tiny_llama
from tiny_bases import bert_folder, gpt2_folder, roberta_folder, t5_folder
from zhlm.config.schema import RunConfig
from zhlm.evaluate.models import both_models, load
from zhlm.model.load import draw_model
from zhlm.storage import Run
from zhlm.tokenizer.load import load_tokenizer


def test_the_base_of_a_run_from_scratch_is_the_drawn_one(tmp_path: Path) -> None:
    base = save_tiny_llama(tmp_path / "base")
    (base / "model.safetensors").unlink()
    data = run_data(tmp_path, lora=None)
    data["base"]["from_scratch"] = True
    config = RunConfig.model_validate_json(json.dumps(data))
    run = Run.of(config)
    save_tiny_llama(run.export.path / "merged")
    (run.export / "manifest.json").write_text("{}")
    found = both_models(config, run)
    models = {name: load(source, torch.device("cpu"), revision, seed)[0] for name, (source, revision, seed) in found.items()}
    assert torch.equal(models["base"].lm_head.weight, draw_model(str(base), config.seed).lm_head.weight)
    assert not torch.equal(models["base"].lm_head.weight, models["adapted"].lm_head.weight)


def without(folder: Path, **special: Any) -> None:
    tokenizer = load_tokenizer(str(folder))
    for name, value in special.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)


def test_a_base_that_lacks_what_the_run_needs_is_measured_behind_the_vocab_stage(tmp_path: Path) -> None:
    def is_behind(name: str, base: Any, merged: Any, *, lacks: str = "", **settings: Any) -> bool:
        folder = tmp_path / name
        base(folder / "base")
        if lacks:
            without(folder / "base", **{lacks: None})
        config = RunConfig.model_validate(run_data(folder) | {"vocab": {"tokenizer": "org/own"}} | settings)
        run = Run.of(config)
        merged(run.export.path / "merged")
        (run.export / "manifest.json").write_text("{}")
        found = both_models(config, run)["base"]
        assert found in ((run.base_model(config), None, None), (str(folder / "base"), None, None))
        return found[0] == run.base_model(config)

    assert is_behind("other mask", roberta_folder, bert_folder, objective="masked")
    assert not is_behind("same mask", bert_folder, bert_folder, objective="masked")
    assert not is_behind("no mask asked for", gpt2_folder, bert_folder)
    assert is_behind("no sentinels", gpt2_folder, t5_folder, objective="span_corruption")
    assert not is_behind("sentinels", t5_folder, t5_folder, objective="span_corruption")
    assert is_behind("no bos", gpt2_folder, bert_folder, lacks="bos_token", pack={"document_start": "bos"})
    assert not is_behind("bos", gpt2_folder, bert_folder, pack={"document_start": "bos"})
