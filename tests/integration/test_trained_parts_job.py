"""What is trained, at which rate, and how it started: on a real local Ray with two DeepSpeed workers, through to the export."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from test_vocab_job import LLAMA, config_at, save_base
from torch import distributed
from transformers import AutoModelForCausalLM

from conftest import run_data, save_tiny_llama, write_blocks
from zhlm.adapt.lora import make_trainable, plain_name, trained_parameters
from zhlm.checkpoint.made_for import made_for
from zhlm.checkpoint.state import newest
from zhlm.config.schema import RunConfig
from zhlm.config.stages import reads
from zhlm.export import job as export
from zhlm.model.load import draw_model, load_base
from zhlm.storage import Run
from zhlm.train import job
from zhlm.train.board import Board
from zhlm.train.extend import keep_what_serves
from zhlm.train.loop import train_worker
from zhlm.vocab import job as vocab

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(240)]


def config_of(folder: Path, *, from_scratch: bool = False, **train: Any) -> RunConfig:
    save_tiny_llama(folder / "base", tied=False)
    write_blocks(folder / "runs" / "tiny", ["zh", "en"])
    data = run_data(folder, steps=6, warmup_share=0.0, **train)
    data["base"]["from_scratch"] = from_scratch
    return RunConfig.model_validate_json(json.dumps(data))


def train_in_turn(settings: dict[str, Any]) -> None:
    """On a Ray Train worker. Of a run that comes again, the first training is kept beside it, and of its checkpoints what still serves."""
    before: dict[str, RunConfig] = {}
    for one in settings["runs"]:
        config, folder = RunConfig.model_validate_json(one["config"]), Path(one["folder"])
        distributed.barrier()
        if distributed.get_rank() == 0 and one["folder"] in before:
            shutil.copytree(folder, folder.with_name("first"))
            was, now = ({"config": reads(c, "train")} for c in (before[one["folder"]], config))
            keep_what_serves(Run.of(config).checkpoints, was, now)
            checkpoint, _ = newest(Run.of(config).checkpoints)
            assert checkpoint is not None and checkpoint.state.step == 3
            checkpoint.check_fits(one["made_for"])
        distributed.barrier()
        before[one["folder"]] = config
        train_worker(dict(one))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """DoRA with saved modules and rates; a model from scratch, as it was at first and made longer. All on the same two workers."""
    dora = {"r": 4, "dora": True, "modules_to_save": ["model.norm"], "targets": ["q_proj", "down_proj"], "plus_ratio": 16.0}
    factors = {r"model\.layers\.0\..*": 1e-9}
    schedule = {"schedule": "wsd", "decay_share": 0.5, "warmup_steps": 0, "keep_checkpoints": 1, "keep_best": 0}
    own = config_of(tmp_path_factory.mktemp("dora"), lora=dora, embeddings="none", zero_stage=3, rate_factors=factors)
    drawn = config_of(tmp_path_factory.mktemp("drawn"), from_scratch=True, lora=None, freeze={"first_layers": 1}, **schedule)
    longer = drawn.model_copy(update={"train": drawn.train.model_copy(update={"steps": 9})})
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    board = Board.remote()  # type: ignore[attr-defined]
    runs = []
    for config in (own, drawn, longer):
        run = Run.of(config)
        more = {"steps": config.train.steps, "made_for": made_for(config, run), "board": board}
        runs.append({"config": config.model_dump_json(), "folder": str(run.folder), **more})
    TorchTrainer(
        train_in_turn,
        train_loop_config={"runs": runs},
        scaling_config=job.scaling_config(own.resources),
        torch_config=TorchConfig(backend="gloo"),
    ).fit()
    return {"dora": own, "first": drawn.model_copy(update={"name": "first"}), "longer": longer}


def exported(config: RunConfig) -> dict[str, torch.Tensor]:
    """The trained weights of the last checkpoint by their plain names; the run is exported."""
    rows = rows_of(config)
    assert rows[6]["loss_nats"] < rows[1]["loss_nats"]
    checkpoint, _ = newest(Run.of(config).checkpoints)
    assert checkpoint is not None
    assert export.run(config, lambda _: None)["merged_difference"] < 1e-4
    return {plain_name(name): value for name, value in checkpoint.trainable().items()}


def rows_of(config: RunConfig) -> dict[int, dict[str, Any]]:
    rows = [json.loads(line) for line in Run.of(config).metrics.read_text().splitlines()]
    return {r["step"]: r for r in rows if "loss_nats" in r}


def test_dora_saved_modules_and_rates_under_zero_3(trained: dict[str, RunConfig]) -> None:
    config = trained["dora"]
    values = exported(config)
    start = make_trainable(load_base(config, config.base.model), config.train, config.seed)
    before = {plain_name(name): p.detach() for name, p in trained_parameters(start).items()}
    assert set(values) == set(before) and sum("lora" not in name for name in values) == 1
    moved = {name: float((values[name] - before[name]).abs().max()) for name in values}
    assert all((way < 1e-6) == name.startswith("model.layers.0.") for name, way in moved.items()), moved
    # Adam moves a weight by about its rate in each step, as long as its gradient keeps its sign.
    of_a, of_b = (max(way for name, way in moved.items() if part in name) for part in ("lora_A", "lora_B"))
    assert of_a < 6 * config.train.learning_rate * 1.1 < of_b


def test_a_model_from_scratch_whose_first_layer_stays_as_drawn(trained: dict[str, RunConfig]) -> None:
    config = trained["first"]
    values = exported(config)
    assert values and not any(name.startswith("model.layers.0.") for name in values)
    drawn = draw_model(config.base.model, config.seed).state_dict()
    merged = AutoModelForCausalLM.from_pretrained(Run.of(config).export.path / "merged").state_dict()
    assert all(torch.equal(merged[name], drawn[name]) == name.startswith("model.layers.0.") for name in drawn)


def test_a_training_made_longer_goes_on_from_where_the_rate_began_to_fall(trained: dict[str, RunConfig]) -> None:
    assert Run.of(trained["first"]).checkpoints.names() == ["step_00000003", "step_00000006"]
    before, after = rows_of(trained["first"]), rows_of(trained["longer"])
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
