"""What is trained, at which rate, and how it started: on a real local Ray with two DeepSpeed workers, through to the export."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_vocab_job import LLAMA, config_at, save_base
from transformers import AutoModelForCausalLM

from conftest import run_data, save_tiny_llama, write_blocks
from zhlm.adapt.lora import make_trainable, plain_name, trained_parameters
from zhlm.checkpoint.state import newest
from zhlm.config.schema import RunConfig
from zhlm.config.stages import reads
from zhlm.export import job as export
from zhlm.model.load import draw_model, load_base
from zhlm.storage import Run
from zhlm.train import job
from zhlm.train.extend import keep_what_serves
from zhlm.vocab import job as vocab

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(240)]


def run_to_the_export(folder: Path, *, from_scratch: bool, **train: Any) -> tuple[RunConfig, dict[str, torch.Tensor]]:
    """The config, and the trained weights of the last checkpoint by their plain names."""
    save_tiny_llama(folder / "base", tied=False)
    write_blocks(folder / "runs" / "tiny", ["zh", "en"])
    data = run_data(folder, steps=6, warmup_share=0.0, **train)
    data["base"]["from_scratch"] = from_scratch
    config = RunConfig.model_validate_json(json.dumps(data))
    facts = job.run(config, lambda _: None)
    assert facts["loss_nats"] < rows_of(config)[1]["loss_nats"]
    checkpoint, _ = newest(Run.of(config).checkpoints)
    assert checkpoint is not None
    assert export.run(config, lambda _: None)["merged_difference"] < 1e-4
    return config, {plain_name(name): value for name, value in checkpoint.trainable().items()}


def rows_of(config: RunConfig) -> dict[int, dict[str, Any]]:
    rows = [json.loads(line) for line in Run.of(config).metrics.read_text().splitlines()]
    return {r["step"]: r for r in rows if "loss_nats" in r}


def test_dora_saved_modules_and_rates_under_zero_3(tmp_path: Path) -> None:
    lora = {"r": 4, "dora": True, "modules_to_save": ["model.norm"], "targets": ["q_proj", "down_proj"], "plus_ratio": 16.0}
    factors = {r"model\.layers\.0\..*": 1e-9}
    config, values = run_to_the_export(tmp_path, from_scratch=False, lora=lora, embeddings="none", zero_stage=3, rate_factors=factors)
    start = make_trainable(load_base(config, str(tmp_path / "base")), config.train, config.seed)
    before = {plain_name(name): p.detach() for name, p in trained_parameters(start).items()}
    assert set(values) == set(before) and sum("lora" not in name for name in values) == 1
    moved = {name: float((values[name] - before[name]).abs().max()) for name in values}
    assert all((way < 1e-6) == name.startswith("model.layers.0.") for name, way in moved.items()), moved
    # Adam moves a weight by about its rate in each step, as long as its gradient keeps its sign.
    of_a, of_b = (max(way for name, way in moved.items() if part in name) for part in ("lora_A", "lora_B"))
    assert of_a < 6 * config.train.learning_rate * 1.1 < of_b


def test_a_model_from_scratch_whose_first_layer_stays_as_drawn(tmp_path: Path) -> None:
    schedule = {"schedule": "wsd", "decay_share": 0.5, "warmup_steps": 0, "keep_checkpoints": 1, "keep_best": 0}
    config, values = run_to_the_export(tmp_path, from_scratch=True, lora=None, freeze={"first_layers": 1}, **schedule)
    assert values and not any(name.startswith("model.layers.0.") for name in values)
    drawn = draw_model(str(tmp_path / "base"), config.seed).state_dict()
    merged = AutoModelForCausalLM.from_pretrained(Run.of(config).export.path / "merged").state_dict()
    assert all(torch.equal(merged[name], drawn[name]) == name.startswith("model.layers.0.") for name in drawn)

    # Made longer, it goes on from where the rate began to fall.
    checkpoints = Run.of(config).checkpoints
    assert checkpoints.names() == ["step_00000003", "step_00000006"]
    longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": 9})})
    before = rows_of(config)
    assert keep_what_serves(checkpoints, {"config": reads(config, "train")}, {"config": reads(longer, "train")}) == 3
    job.run(longer, lambda _: None)
    after = rows_of(longer)
    assert sorted(after) == list(range(1, 10))
    assert all(after[step] == before[step] for step in (1, 2, 3)) and after[5]["learning_rate"] > before[5]["learning_rate"]


def test_an_extended_base_from_scratch_is_drawn_once_by_the_vocab_stage(tmp_path: Path) -> None:
    save_base(tmp_path / "base", LLAMA)
    (tmp_path / "base" / "model.safetensors").unlink()
    plain = config_at(tmp_path, force=True)
    data = json.loads(plain.model_dump_json())
    data["base"]["from_scratch"], data["train"]["lora"] = True, None
    config = RunConfig.model_validate_json(json.dumps(data))
    facts = vocab.run(config, lambda _: None)
    extended = load_base(config, Run.of(config).base_model(config))
    drawn = draw_model(str(tmp_path / "base"), config.seed)
    rows = drawn.get_input_embeddings().weight
    assert facts["added"] > 0 and len(extended.get_input_embeddings().weight) >= len(rows) + facts["added"]
    assert torch.equal(extended.get_input_embeddings().weight[: len(rows)], rows)
    assert torch.equal(extended.model.layers[1].mlp.up_proj.weight, drawn.model.layers[1].mlp.up_proj.weight)
