"""The GPU benchmark's arithmetic and arms, on tiny shapes and a CPU."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import gpu
from benchmarks.train_loops import IGNORED, Torch, all_steps, inputs_of, train
from zhlm.config.schema import RunConfig
from zhlm.objectives.causal import Causal
from zhlm.records import Blocks

TINY: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
BLOCK_TOKENS = 64


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    made = gpu.config_of(tmp_path_factory.mktemp("gpu"), "tiny", "lora", 2, BLOCK_TOKENS, {})
    gpu.prepare(made, TINY, "cpu")
    return made


@pytest.mark.parametrize(("size", "billions"), [("0.5B", 0.5), ("8B", 8.0)])
def test_models_are_as_large_as_their_names_say(size: str, billions: float) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**gpu.SHAPES[size]))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.02)
    shapes = [(m.in_features, m.out_features) for m in model.model.layers[0].modules() if isinstance(m, torch.nn.Linear)]
    assert sorted(shapes) == sorted(gpu.linear_shapes(gpu.SHAPES[size]))


@pytest.mark.parametrize("frozen", [False, True])
def test_operations_are_those_that_torch_counts(frozen: bool) -> None:
    model = LlamaForCausalLM(LlamaConfig(attn_implementation="eager", **TINY | {"tie_word_embeddings": False}))
    model.requires_grad_(not frozen)
    model.get_input_embeddings().weight.requires_grad_(True)  # so that the gradients reach the first layer, as an adapter there wants
    with FlopCounterMode(display=False) as counted:
        model(input_ids=torch.zeros((1, BLOCK_TOKENS), dtype=torch.int64)).logits.sum().backward()
    halves = TINY["num_hidden_layers"] * 3 * 4 * TINY["hidden_size"] * (BLOCK_TOKENS - 1) / 2  # eager attention computes what is masked
    told = gpu.flops_per_token(TINY, BLOCK_TOKENS, 0 if frozen else None) + halves
    assert told * BLOCK_TOKENS == pytest.approx(counted.get_total_flops(), rel=1e-3)


def test_an_adapter_costs_its_own_products() -> None:
    pairs = 2 * sum(i + o for i, o in gpu.linear_shapes(TINY))
    assert gpu.flops_per_token(TINY, BLOCK_TOKENS, 8) - gpu.flops_per_token(TINY, BLOCK_TOKENS, 0) == 6 * 8 * pairs


def test_peak_of_a_device() -> None:
    assert gpu.peak_flops("NVIDIA H100 80GB HBM3", None) == 989e12 and gpu.peak_flops("NVIDIA L40S", None) == 362e12
    assert gpu.peak_flops("Something new", None) is None and gpu.peak_flops("Something new", 100.0) == 1e14


def test_both_methods_are_runs_of_the_same_blocks(config: RunConfig, tmp_path: Path) -> None:
    full = gpu.config_of(tmp_path, "8B", "full", 3, 4096, {"workers": 1, "gpus_per_worker": 1})
    assert full.train.lora is None and full.train.gradient_checkpointing and full.train.precision == "bfloat16"
    steps = list(all_steps(config, 2))
    assert [tuple(s["input_ids"].shape) for s in steps] == [(16, BLOCK_TOKENS)] * 2
    assert all((s["labels"] != IGNORED).sum() == 16 * (BLOCK_TOKENS - 1) for s in steps), "a block is one document"


def test_the_arm_of_transformers_learns_what_the_bare_loop_learns(config: RunConfig) -> None:
    exact = config.model_copy(update={"train": config.train.model_copy(update={"precision": "float32"})})
    found, losses = gpu.measure("transformers", exact), list[float]()
    train(Torch, exact, 2, lambda step, took_s, loss: losses.append(loss))
    assert len(found["step_s"]) == 2 and found["losses"] == pytest.approx(losses, abs=1e-5)


def test_labels_are_the_targets_of_training() -> None:
    blocks = Blocks(np.arange(12).reshape(2, 6) + 3, [np.array([3, 5], np.uint32), np.array([6], np.uint32)])
    ours, theirs = Causal().make_batch(blocks, range(2)), inputs_of(blocks)
    assert torch.equal(ours.inputs["position_ids"], theirs["position_ids"])
    assert torch.equal(ours.targets_BT[:, :-1], theirs["labels"][:, 1:]), "the model shifts labels, ours are shifted already"


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 2
    assert tuple(capsys.readouterr()) == ("", "benchmarks: gpu: torch sees no CUDA device, expected one; run it on a machine with a GPU\n")
