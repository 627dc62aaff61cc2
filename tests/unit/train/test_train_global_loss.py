"""The loss of a step is the mean over the global batch's targets: what one big batch gives, however it is dealt to passes.

Documents of uneven length are in every block, and 7 blocks share evenly into nothing: some passes have mute rows.
"""

import json
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import run_data, save_tiny_llama, write_blocks
from zhlm.blocks.read import training_reader
from zhlm.checkpoint.sharded import _held
from zhlm.config.schema import RunConfig
from zhlm.model.load import load_model
from zhlm.objectives.batch import IGNORED, Batch, sum_nats
from zhlm.objectives.causal import Causal
from zhlm.storage import Run
from zhlm.train import loop
from zhlm.train.engine import Engine
from zhlm.train.feed import Feed
from zhlm.train.schedule import share_of

BLOCKS = 7
Step = tuple[float, dict[str, torch.Tensor]]
"""A step's loss in nats per target, and the gradients by name."""


def config_of(folder: Path, micro_blocks: int, **train: Any) -> RunConfig:
    train |= {"lora": None, "global_batch_blocks": BLOCKS, "micro_batch_blocks": micro_blocks, "max_grad_norm": None, "zero_stage": 2}
    return RunConfig.model_validate_json(json.dumps(run_data(folder, **train)))


def trained_step(folder: Path, micro_blocks: int, **train: Any) -> Step:
    """The loop's own step."""
    config, device = config_of(folder, micro_blocks, **train), torch.device("cpu")
    run, share = Run.of(config), share_of(BLOCKS, micro_blocks, 1)
    model = load_model(str(folder / "base")).requires_grad_(True)
    engine = Engine(model.train(), config.train, share, torch.device("cpu"))
    waits: Any = SimpleNamespace(tell=lambda: None, asked=lambda: "")
    reader = training_reader(run, config, lambda _: None)
    settings = loop.Settings(config, str(run.folder), 8)
    worker = loop.Worker(settings, run, 0, 1, device, share, reader, Causal(), engine, sum_nats, [], waits)  # type: ignore[arg-type]
    loop._mute_step(worker)
    engine.restore(None)
    engine.leave_out(0)  # as if from the start
    with Feed(reader, worker.deal, range(1), share.micro_blocks, worker.objective, device) as feed:
        loss_nats, *_ = loop._step(worker, feed, None, 0)  # type: ignore[arg-type]
    # After one step from nothing, Adam's first moment is the gradient times 1 - beta.
    first = {name: _held(p, engine._adam, "exp_avg", 0)[1].reshape(p.shape) for name, p in model.named_parameters()}  # type: ignore[index]
    return loss_nats, {name: moment / (1 - config.train.betas[0]) for name, moment in first.items()}


def one_big_batch(folder: Path) -> Step:
    """The same blocks by plain PyTorch, all at once."""
    config = config_of(folder, BLOCKS)
    model = load_model(str(folder / "base")).requires_grad_(True)
    batch = Causal().make_batch(training_reader(Run.of(config), config, lambda _: None).read(range(BLOCKS)), range(BLOCKS))
    assert len(set(batch.fills_B.tolist())) > 1, "blocks of uneven length"
    loss = sum_nats(model, batch) / batch.num_targets
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_step_with_nothing_to_learn_moves_nothing(tmp_path: Path) -> None:
    """By masked: blocks of special tokens alone. Backward and the optimizer are not even asked."""
    left_out: list[int] = []
    worker: Any = SimpleNamespace(
        settings=loop.Settings(config_of(tmp_path, 3), str(tmp_path), 8),
        deal=lambda step: [[7 * step, 7 * step + 1]],
        engine=SimpleNamespace(leave_out=left_out.append),
        waits=SimpleNamespace(tell=None, asked=None),
    )
    nothing = Batch({}, torch.full((2, 4), IGNORED), torch.tensor([4, 3]))
    feed: Any = SimpleNamespace(take=lambda *_: (None, [nothing], 0, 7))
    assert loop._step(worker, feed, None, 4) == (0.0, 0, 7)  # type: ignore[arg-type]
    assert left_out == [5]


@pytest.mark.usefixtures("one_process")
def test_neither_accumulation_nor_a_compiler_changes_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one test, for DeepSpeed keeps to the first group that a process has. Two ranks: tests/integration/test_train_job.py."""
    save_tiny_llama(tmp_path / "base", tied=False)
    write_blocks(tmp_path / "runs" / "tiny", ["zh", "en"])
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    found = [trained_step(tmp_path, micro) for micro in (1, 3, 7)]
    found.append(trained_step(tmp_path, 3, offload="optimizer"))  # with ZeRO: alone, a worker has none otherwise
    compiled = partialmethod(torch.nn.Module.compile, backend="aot_eager")  # the default one calls a C++ compiler for a minute
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    found.append(trained_step(tmp_path, 3, compile=True))
    loss_nats, gradients = one_big_batch(tmp_path)
    for own_nats, own in found:
        assert own_nats == pytest.approx(loss_nats, abs=1e-6)
        assert set(own) == set(gradients)
        assert max(float((own[name] - gradients[name]).abs().max()) for name in own) < 1e-6
