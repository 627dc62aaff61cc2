"""The fused loss, with a Liger that only pretends: where it is used, what it is given, and when the plain one stays."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from conftest import run_data
from fake_liger import LigerFusedLinearCrossEntropyLoss, pretend
from zhlm.adapt.lora import make_trainable
from zhlm.config.schema import RunConfig
from zhlm.errors import ConfigError
from zhlm.objectives import fused
from zhlm.objectives.batch import Batch, sum_nats
from zhlm.objectives.causal import Causal
from zhlm.objectives.fused import Loss
from zhlm.records import Blocks

pytestmark = pytest.mark.usefixtures("one_process")
CPU = torch.device("cpu")
Liger = type[LigerFusedLinearCrossEntropyLoss]


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Liger:
    return pretend(monkeypatch)


def config_of(objective: str = "causal", **train: Any) -> RunConfig:
    data = run_data(Path("nowhere"), **{"lora": None, **train}) | {"objective": objective}
    return RunConfig.model_validate_json(json.dumps(data))


def llama(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=96, max_position_embeddings=64, **shape, **settings))


def gpt2(**settings: Any) -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=2, **settings))


def batch_of(rows: int = 3) -> Batch:
    ids = np.random.default_rng(2).integers(0, 96, (rows, 24))
    return Causal().make_batch(Blocks(ids, [np.array([7, 20 + r], np.uint32) for r in range(rows)]), list(range(rows)))


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("trained", [{}, {"lora": {"r": 4, "dropout": 0.0}}, {"lora": {"r": 4, "dropout": 0.0}, "embeddings": "none"}])
def test_it_gives_the_plain_loss_and_the_plain_gradients(make: Callable[[], Any], trained: dict[str, Any], liger: Liger) -> None:
    config, batch = config_of(**trained), batch_of()
    gradients, losses = [], []
    for train in (config.train.model_copy(update={"fused_loss": "off"}), config.train):
        model = make_trainable(make(), train, 7).eval()
        loss = Loss(model, config.model_copy(update={"train": train}), CPU)
        loss.compare(model, batch)
        nats = loss(model, batch)
        nats.backward()
        losses.append(float(nats.detach()))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert sum_nats(model, batch).item() == pytest.approx(losses[-1]), "the head gives logits to everybody else"
    assert loss.facts == {"fused_loss": True} and losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert liger.calls[0]["input"] == (24, 32) and liger.calls[0]["target"] == (24,), "compared on one row"
    assert liger.calls[1] == {"input": (72, 32), "target": (72,), "training": True} and len(liger.calls) == 2
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 4
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_one_that_does_not_agree_is_left_out_and_told(liger: Liger) -> None:
    model, batch = llama(), batch_of()
    liger.factor = 1.001
    loss = Loss(model, config_of(), CPU)
    loss.compare(model, batch)
    assert loss.facts["fused_loss"] is False and "nats, the plain one" in loss.facts["why_plain"] and len(liger.calls) == 1
    assert torch.equal(loss(model, batch), sum_nats(model, batch)) and len(liger.calls) == 1 and not model.eval().training
    with pytest.raises(ConfigError, match=r"^train: fused_loss is on, but on the first rows it is [\d.]+ nats, the plain one [\d.]+; set"):
        Loss(model, config_of(fused_loss="on"), CPU).compare(model, batch)


@pytest.mark.usefixtures("liger")
def test_a_class_that_scales_its_logits_keeps_the_plain_one() -> None:
    class Scaled(LlamaForCausalLM):
        def forward(self, *arguments: Any, **named: Any) -> Any:
            output = super().forward(*arguments, **named)
            output.logits = output.logits / 8
            return output

    model = llama()
    model.__class__ = Scaled
    loss = Loss(model, config_of(), CPU)
    loss.compare(model, batch_of())
    assert loss.facts["fused_loss"] is False


def test_a_kernel_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch, liger: Liger) -> None:
    monkeypatch.setattr(liger, "forward", lambda *_: 1 / 0)
    loss = Loss(model := llama(), config_of(), CPU)
    loss.compare(model.train(), batch_of())
    assert loss.facts == {"fused_loss": False, "why_plain": "it fails: ZeroDivisionError: division by zero"} and model.training
    other = Loss(llama(), config_of(), CPU)
    other.compare(model, None)
    assert other.facts["why_plain"] == "there is no held-out block to compare it on"


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize(
    ("objective", "train", "why"),
    [
        ("masked", {}, "the objective is masked, expected causal"),
        ("causal", {"compile": True}, "train.compile is true"),
        ("causal", {"lora": {"r": 4, "targets": ["lm_head", "q_proj"]}, "embeddings": "none"}, "the head is a Linear, expected a plain"),
    ],
)
def test_what_it_is_not_for_is_told(objective: str, train: dict[str, Any], why: str) -> None:
    config = config_of(objective, **train)
    model = make_trainable(llama(tie_word_embeddings=False), config.train, 7)
    assert Loss(model, config, CPU).facts["why_plain"].startswith(why)
    with pytest.raises(ConfigError, match="fused_loss is on, but "):
        Loss(model, config.model_copy(update={"train": config.train.model_copy(update={"fused_loss": "on"})}), CPU)


def test_without_a_gpu_or_without_liger_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    assert Loss(model, config_of(), CPU).facts == {} and type(model.lm_head) is torch.nn.Linear
    with pytest.raises(ConfigError, match="the workers have no GPU"):
        Loss(model, config_of(fused_loss="on"), CPU)
    monkeypatch.setattr(fused, "_on_gpu", lambda device: True)
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert "pip install liger-kernel" in Loss(model, config_of(), CPU).facts["why_plain"]
    assert Loss(model, config_of(fused_loss="off"), CPU).facts == {}


def test_yaml_reads_on_and_off_as_booleans() -> None:
    words = [config_of(fused_loss=value).train.fused_loss for value in (True, False, "on", "off", "auto")]
    assert words == ["on", "off", "on", "off", "auto"]
    with pytest.raises(ValidationError):
        config_of(fused_loss="yes")
