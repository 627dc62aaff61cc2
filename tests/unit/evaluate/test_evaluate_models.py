"""Which two models are compared."""

import json
from pathlib import Path

import torch

from conftest import run_data, save_tiny_llama
from zhlm.config.schema import RunConfig
from zhlm.evaluate.models import both_models, load
from zhlm.model.load import draw_model
from zhlm.storage import Run


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
