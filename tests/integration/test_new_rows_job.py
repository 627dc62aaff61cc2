"""Training only the new rows: under every ZeRO stage, tied or not, through checkpoint, resume and export; two workers in test_matrix.py."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from conftest import VOCABULARY, run_data, save_tiny_llama
from zhlm.adapt.lora import make_trainable
from zhlm.adapt.new_rows import new_rows_of
from zhlm.checkpoint.state import Checkpoint, TrainState, newest, save
from zhlm.config.schema import RunConfig
from zhlm.export import job as export
from zhlm.model.load import load_model
from zhlm.objectives.batch import sum_nats
from zhlm.objectives.causal import Causal
from zhlm.records import Blocks
from zhlm.storage import Place, Run
from zhlm.train.engine import Engine, load_trainable
from zhlm.train.schedule import share_of

ADDED, PADDING, STEPS = 9, 4, 4
FIRST = VOCABULARY - ADDED
BLOCKS, BLOCK_TOKENS = 4, 32


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """One for all: DeepSpeed keeps the groups that it made of the first."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")  # as Ray Train sets it
        yield
    distributed.destroy_process_group()


def extended(folder: Path, tied: bool, **train: Any) -> RunConfig:
    """A run whose vocab stage is done: the last pieces of its tokenizer are new, and behind their rows there is padding."""
    data = run_data(folder, embeddings="new_rows", **train) | {"vocab": {}}
    config = RunConfig.model_validate_json(json.dumps(data))
    vocab = save_tiny_llama(Run.of(config).vocab.path)
    rows, width = VOCABULARY + PADDING, 32
    torch.manual_seed(3)
    model = (
        GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_positions=64, n_embd=width, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1))
        if tied
        else LlamaForCausalLM(
            LlamaConfig(
                vocab_size=rows, hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
            )
        )
    )  # fmt: skip
    model.save_pretrained(vocab)
    (vocab / "manifest.json").write_text(json.dumps({"facts": {"added": ADDED}}), encoding="utf-8")
    return config


def blocks_of(step: int) -> Blocks:
    """Documents that count up, so that they are easy to learn, and meet every id."""
    starts = np.random.default_rng(step).integers(0, VOCABULARY, (BLOCKS, 1))
    return Blocks((starts + np.arange(BLOCK_TOKENS)) % VOCABULARY, [np.array([20, BLOCK_TOKENS], np.uint32)] * BLOCKS)


def train(config: RunConfig, found: Checkpoint | None) -> list[float]:
    """What the training loop does on one worker, without Ray. Returns the losses; leaves a checkpoint of every second step."""
    run, share = Run.of(config), share_of(BLOCKS, BLOCKS, 1)
    model = make_trainable(load_model(run.base_model(config)), config.train, config.seed, new_rows_of(config, run))
    if found is not None:
        load_trainable(model, found)
    engine = Engine(model.train(), config.train, share, torch.device("cpu"))

    def step(number: int, factor: float) -> float:
        torch.manual_seed(number)
        batch = Causal().make_batch(blocks_of(number), range(BLOCKS))
        nats = sum_nats(engine.deepspeed, batch)
        engine.backward(factor * nats, batch.num_targets)
        engine.end_pass()
        return float(nats.detach()) / batch.num_targets

    engine.set_rates(0.0)
    step(0, 0.0)
    engine.restore(found)
    losses, copy = [], engine.state_copy()
    for number in range(found.state.step if found else 0, STEPS):
        engine.set_rates(1.0)
        losses.append(step(number, 1.0))
        if number % 2:
            copy.take()
            whole = copy.assemble()
            save(run.checkpoints, TrainState(number + 1), whole["trainable"], whole["optimizer"])
    engine.deepspeed.destroy()
    return losses


def trained(checkpoints: Place) -> dict[str, torch.Tensor]:
    found, _ = newest(checkpoints)
    assert found is not None and found.state.step == STEPS
    return found.trainable()


# DeepSpeed's own, of what it calls in torch.
@pytest.mark.filterwarnings("ignore:`torch.distributed.* is deprecated:FutureWarning")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_old_rows_stay_through_training_resume_and_export(tmp_path: Path, process_group: None, zero_stage: int, tied: bool) -> None:
    config = extended(tmp_path, tied, zero_stage=zero_stage)
    run = Run.of(config)
    losses = train(config, None)
    once = trained(run.checkpoints)
    assert losses[-1] < losses[0]
    (run.checkpoints / f"step_{STEPS:08d}").delete()
    halfway, _ = newest(run.checkpoints)
    assert halfway is not None and halfway.state.step == 2
    assert train(config, halfway) == losses[2:]
    resumed = trained(run.checkpoints)
    assert all(torch.equal(resumed[name], once[name]) for name in once) and set(resumed) == set(once)
    check_export(config, tied, once)


def check_export(config: RunConfig, tied: bool, parameters: dict[str, torch.Tensor]) -> None:
    """The merged model differs from the base, in embedding and head, by the new rows as they were trained, and by nothing else."""
    rows = {name: tensor for name, tensor in parameters.items() if ".lora_" not in name}
    assert len(rows) == (1 if tied else 2) and {tuple(t.shape) for t in rows.values()} == {(ADDED, 32)}
    facts = export.run(config, lambda _: None)
    assert {"adapter_difference", "merged_difference"} < set(facts), "both folders were loaded again and gave the trained logits"
    run = Run.of(config)
    before, after = (AutoModelForCausalLM.from_pretrained(f) for f in (run.vocab.path, run.export.path / "merged"))
    new = range(FIRST, VOCABULARY)
    old = [row for row in range(VOCABULARY + PADDING) if row not in new]
    assert after.get_input_embeddings().weight.shape[0] == VOCABULARY + PADDING
    for part in ("get_input_embeddings", "get_output_embeddings"):
        one, other = (getattr(m, part)().weight.detach() for m in (before, after))
        assert torch.equal(one[old], other[old]), "old rows and padding, bit for bit"
        assert (one[new] != other[new]).any(dim=1).all(), "every new row was trained"
        assert any(torch.equal(other[new], tensor) for tensor in rows.values())
    assert (after.get_input_embeddings().weight is after.get_output_embeddings().weight) == tied
    assert ("lm_head.weight" in load_file(run.export.path / "merged" / "model.safetensors")) == (not tied)
    saved = load_file(run.export.path / "adapter" / "adapter_model.safetensors")
    assert sum(t.numel() for name, t in saved.items() if ".lora_" not in name) == sum(t.numel() for t in rows.values())
