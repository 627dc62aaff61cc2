"""ZeRO-3 cuts a model that is on the CPU, and trains as the other stages do; with the fused loss too."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from conftest import run_data, save_tiny_llama, write_blocks
from fake_liger import pretend
from zhlm.adapt.lora import make_trainable
from zhlm.blocks.read import training_reader
from zhlm.config.schema import RunConfig
from zhlm.model.load import load_model
from zhlm.objectives.causal import Causal
from zhlm.objectives.fused import Loss
from zhlm.storage import Run
from zhlm.train import engine as module
from zhlm.train.engine import Engine
from zhlm.train.schedule import share_of

CPU = torch.device("cpu")
RANKS = 2


def trained(folder: Path, **train: Any) -> tuple[list[float], dict[str, torch.Tensor], Loss]:
    """Losses of three steps, the trained weights behind them, and how the loss was computed."""
    data = run_data(folder, **{"global_batch_blocks": 2, "lora": {"r": 4, "dropout": 0.0}, **train})
    config = RunConfig.model_validate_json(json.dumps(data))
    dtype = torch.bfloat16 if config.train.precision == "bfloat16" else torch.float32
    model = make_trainable(load_model(str(folder / "base"), dtype=dtype), config.train, 7)
    loss = Loss(model, config, CPU)
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    engine = Engine(model.train(), config.train, share_of(2 * ranks, 2, ranks), CPU)
    reader = training_reader(Run.of(config), config)
    starts = [2 * (step * ranks + rank) for step in range(4)]
    batches = [Causal().make_batch(reader.read(range(start, start + 2)), [0, 0]) for start in starts]
    loss.compare(engine.deepspeed, batches[3])
    engine.set_rates(0.0)
    engine.backward(0.0 * loss(engine.deepspeed, batches[3].mute_after(0)), 1)
    engine.end_pass()
    engine.restore(None)
    engine.set_rates(1.0)
    losses = []
    for batch in batches[:3]:
        nats = loss(engine.deepspeed, batch)
        engine.backward(nats, batch.num_targets)
        engine.end_pass()
        losses.append(float(nats.detach()) / batch.num_targets)
    copy = engine.state_copy()
    copy.take()
    return losses, copy.assemble()["trainable"], loss


WAYS: list[dict[str, Any]] = [
    {"precision": "bfloat16", "embeddings": "none", "offload": "all"},
    {"lora": None, "freeze": {"first_layers": 1}},
]


def check_a_model_on_the_cpu_trains_as_a_whole_one(folder: Path) -> None:
    for asked in WAYS:
        losses, weights, _ = trained(folder, zero_stage=3, **asked)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_shard", lambda deepspeed, model, config, device: model.to(device))  # as DeepSpeed does it alone
            expected_losses, expected, _ = trained(folder, zero_stage=3, **asked)
        assert losses == expected_losses and weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def check_nothing_whole_is_left_before_deepspeed_takes_it(folder: Path) -> None:
    deepspeed = module._import_deepspeed()
    initialize, seen = deepspeed.initialize, list[tuple[int, bool]]()

    def look(model: torch.nn.Module, **named: Any) -> Any:
        seen.extend((p.numel(), hasattr(p, "ds_id")) for p in model.parameters() if p.ds_numel > 1e5)  # small ones stay whole, by design
        return initialize(model=model, **named)

    data = run_data(folder, zero_stage=3, lora=None)
    config = RunConfig.model_validate_json(json.dumps(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepspeed, "initialize", look)
        Engine(load_model(str(folder / "wide")).train(), config.train, share_of(2 * RANKS, 2, RANKS), CPU)
    assert len(seen) > 4 and {*seen} == {(0, True)}


def check_the_fused_loss_finds_the_heads_weight_in_shards(folder: Path) -> None:
    plain, weights, _ = trained(folder, zero_stage=3, fused_loss="off")
    with pytest.MonkeyPatch.context() as patch:
        liger = pretend(patch)
        fused, fused_weights, loss = trained(folder, zero_stage=3)
        assert loss.facts == {"fused_loss": True} and len(liger.calls) == 5
    assert fused == pytest.approx(plain, rel=1e-5)
    assert all(float((fused_weights[name] - weights[name]).abs().max()) < 1e-4 for name in weights)  # of the rank that writes them


def work(rank: int, folder: Path, ranks: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu"}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    check_a_model_on_the_cpu_trains_as_a_whole_one(folder)
    check_nothing_whole_is_left_before_deepspeed_takes_it(folder)
    check_the_fused_loss_finds_the_heads_weight_in_shards(folder)


def test_zero_3_from_the_cpu(tmp_path: Path) -> None:
    """In a process of its own: DeepSpeed keeps the first process group that it sees."""
    save_tiny_llama(tmp_path / "base", tied=False)
    save_tiny_llama(tmp_path / "wide", tied=False, vocabulary=259, width=512)
    write_blocks(tmp_path / "runs" / "tiny", ["zh", "en"])
    multiprocessing.spawn(work, (tmp_path, RANKS), nprocs=RANKS)
