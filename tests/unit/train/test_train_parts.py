"""The DeepSpeed dict, the metrics file and the held-out measurement, on one process."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from conftest import VOCABULARY, save_tiny_llama, write_blocks
from zhlm.blocks.read import BlockReader
from zhlm.checkpoint.sharded import create_moments, set_step
from zhlm.config.schema import TrainConfig
from zhlm.model.load import load_model
from zhlm.objectives.batch import sum_nats
from zhlm.objectives.causal import Causal
from zhlm.objectives.isolation import check_isolation
from zhlm.records import Blocks
from zhlm.storage import Place, Run
from zhlm.train.engine import deepspeed_config
from zhlm.train.metrics import MetricsLog, read_rows
from zhlm.train.schedule import share_of
from zhlm.train.validate import held_out, validate


def deepspeed_of(world_size: int = 2, **settings: Any) -> dict[str, Any]:
    train = TrainConfig(steps=1, **settings)
    return deepspeed_config(train, share_of(train.global_batch_blocks, train.micro_batch_blocks, world_size), world_size)


def test_batch_sizes_agree_with_each_other_for_any_number_of_workers() -> None:
    for world_size in (1, 2, 3, 5, 64):
        made = deepspeed_of(world_size, global_batch_blocks=16, micro_batch_blocks=4)
        product = made["train_micro_batch_size_per_gpu"] * made["gradient_accumulation_steps"] * world_size
        assert made["train_batch_size"] == product >= 16


def test_settings_reach_deepspeed() -> None:
    plain = deepspeed_of(zero_stage=1, max_grad_norm=None)
    assert plain["zero_optimization"] == {"stage": 1} and plain["gradient_clipping"] == 0.0 and plain["bf16"] == {"enabled": False}
    other = deepspeed_of(zero_stage=3, offload="optimizer", precision="bfloat16", max_grad_norm=0.5)
    assert other["zero_optimization"] == {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    assert deepspeed_of(zero_stage=0, precision="bfloat16")["zero_optimization"] == {"stage": 1}
    alone = deepspeed_of(1, zero_stage=3, max_grad_norm=0.5)
    assert alone["zero_optimization"] == {"stage": 0} and alone["gradient_clipping"] == 0.0, "the engine clips"
    assert deepspeed_of(1, zero_stage=2, offload="optimizer")["zero_optimization"]["stage"] == 2
    everything = deepspeed_of(zero_stage=3, offload="all")["zero_optimization"]
    assert everything == {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    assert other["gradient_clipping"] == 0.5 and other["bf16"] == {"enabled": True}
    assert not {"optimizer", "scheduler"} & set(other), "both are ours, and would be applied twice"


@pytest.mark.parametrize(
    "settings", [*({"zero_stage": s} for s in range(4)), {"zero_stage": 2, "offload": "optimizer"}, {"zero_stage": 3, "offload": "all"}]
)
def test_deepspeed_itself_accepts_the_dict(settings: dict[str, Any]) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    made = deepspeed_of(2, **settings)
    made["train_batch_size"] //= 2  # without a process group it counts one rank
    accepted = DeepSpeedConfig(made)
    assert accepted.zero_config.stage == settings["zero_stage"]
    assert accepted.gradient_accumulation_steps == made["gradient_accumulation_steps"]
    assert accepted.gradient_clipping == made["gradient_clipping"] == (1.0 if settings["zero_stage"] else 0.0)


def test_metrics_are_rows_and_a_restart_forgets_what_will_be_told_again(tmp_path: Path) -> None:
    run = Run(Place(tmp_path))
    place, log = run.metrics, MetricsLog(run, 0)
    for step in range(5):
        log.append({"step": step, "try": 1})
    assert not place.exists()
    log.flush()
    again = MetricsLog(run, 2)
    again.append({"step": 3, "try": 2})
    again.flush()
    assert [(r["step"], r["try"]) for r in map(json.loads, place.read_text().splitlines())] == [(0, 1), (1, 1), (2, 1), (3, 2)]
    fresh = MetricsLog(run, 0)
    fresh.append({"step": 0, "try": 3})
    fresh.flush()
    assert [{**row, "unix_s": 0} for row in read_rows(place)] == [{"step": 0, "try": 3, "unix_s": 0}]


@pytest.fixture
def reader(tmp_path: Path) -> BlockReader:
    write_blocks(tmp_path / "run", ["zh", "en"])
    return BlockReader(Run(Place(tmp_path / "run")), {"zh": 1.0, "en": 1.0}, "validation", 1)


@pytest.mark.parametrize(("world_size", "micro"), [(1, 2), (2, 2), (3, 1), (7, 4)])
def test_the_ranks_share_the_held_out_blocks(reader: BlockReader, world_size: int, micro: int) -> None:
    ranks = [held_out(reader, ["zh", "en"], 5, micro, Causal(), rank, world_size) for rank in range(world_size)]
    for stream in range(2):
        assert {len(parts[stream].passes) for parts in ranks} == {math.ceil(math.ceil(5 / world_size) / micro)}
        whole = Causal().make_batch(reader.first(stream, 5), range(5))
        assert sum(b.num_targets for parts in ranks for b in parts[stream].batches()) == whole.num_targets
        assert sum(b.num_tokens for parts in ranks for b in parts[stream].batches()) == whole.num_tokens


def test_bits_per_byte_of_a_model_that_knows_nothing(reader: BlockReader, one_process: None) -> None:
    """Uniform over the vocabulary: each target costs log2(vocabulary) bits, and the sample has 2 bytes per token."""

    class Uniform(torch.nn.Module):
        dtype = torch.float32

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return type("Out", (), {"logits": torch.zeros(*input_ids.shape, VOCABULARY)})

    model = Uniform().train()
    found = validate(model, held_out(reader, ["zh", "en"], 3, 2, Causal(), 0, 1), torch.device("cpu"))
    shards = [reader.shards(s) for s in range(2)]
    for stream, part in zip(("zh", "en"), shards, strict=True):
        tokens, documents, size = (sum(getattr(s, name) for s in part) for name in ("tokens", "documents", "utf8_bytes"))
        assert found[stream]["bits_per_byte"] == pytest.approx(math.log2(VOCABULARY) * (tokens - documents) / size)
    assert model.training, "left as it was"


def test_bits_per_byte_does_not_depend_on_the_batching(reader: BlockReader, one_process: None, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(save_tiny_llama(tmp_path / "base")).eval()
    parts = [held_out(reader, ["zh"], 5, micro, Causal(), 0, 1) for micro in (1, 2, 4, 5)]
    found = [validate(model, part, torch.device("cpu"))["zh"]["bits_per_byte"] for part in parts]
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)
    with torch.no_grad():
        whole: Blocks = reader.first(0, 5)
        batch = Causal().make_batch(whole, range(5))
        nats_per_target = float(sum_nats(model, batch)) / batch.num_targets
    shards = reader.shards(0)
    targets_per_byte = np.sum([s.tokens - s.documents for s in shards]) / np.sum([s.utf8_bytes for s in shards])
    assert found[0] == pytest.approx(nats_per_target / math.log(2) * targets_per_byte, rel=1e-6)


def test_packed_documents_run_on_sdpa(tmp_path: Path) -> None:
    assert load_model(str(save_tiny_llama(tmp_path / "base"))).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("fused", [False, True])
def test_moments_made_beforehand_are_those_that_adam_makes(fused: bool) -> None:
    """The fused kernel runs where the states are on a GPU; it exists on the CPU too."""

    def stepped(create: bool) -> tuple[torch.Tensor, dict[str, Any]]:
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(5, 3))
        optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=fused or None)
        if create:
            create_moments(optimizer)
            set_step(optimizer, 0)
        for _ in range(3):
            parameter.grad = torch.randn(5, 3)
            optimizer.step()
        return parameter.detach(), optimizer.state[parameter]

    (own, own_state), (made, made_state) = stepped(False), stepped(True)
    assert torch.equal(own, made) and all(torch.equal(own_state[key], made_state[key]) for key in own_state)


def test_a_compiled_model_keeps_documents_apart(tmp_path: Path) -> None:
    """What is compiled is traced, and transformers builds its masks in another way then; which compiler follows makes no difference."""
    model = load_model(str(save_tiny_llama(tmp_path / "base")))
    model.compile(backend="eager")
    check_isolation(model, Causal(), "best_fit")
