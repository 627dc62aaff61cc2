"""Out of memory becomes one line that says where and what to lower; other errors stay what they are."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from conftest import run_data
from zhlm.config.schema import ResourcesConfig, RunConfig
from zhlm.errors import TrainError
from zhlm.train.elastic import Forgiving
from zhlm.train.job import _named
from zhlm.train.shortage import Shortage, asked_bytes, memory_for


def config_of(workers: int = 2, gpus: float = 0.0, **train: Any) -> RunConfig:
    data = run_data(Path("/nowhere"), **train)
    data["resources"] |= {"workers": workers, "gpus_per_worker": gpus}
    return RunConfig.model_validate_json(json.dumps(data))


def on_gpu() -> None:
    """As torch says it on a GPU."""
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.68 GiB of which 1.20 GiB is free."
    )


def in_cublas() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize(
    ("fails", "asked_gib"),
    [
        (lambda: torch.empty(1 << 50), (1 << 52) / 2**30),
        (lambda: np.zeros(1 << 50), 8 * 2**20),
        (lambda: [None] * (1 << 60), None),
        (on_gpu, 2.5),
        (in_cublas, None),
    ],
    ids=["torch", "numpy", "python", "gpu", "cublas"],
)
def test_every_allocator_is_understood(fails: Any, asked_gib: float | None) -> None:
    @memory_for("the first batch")
    def work() -> None:
        fails()

    with pytest.raises(Shortage, match=r"^the first batch") as caught:
        work()
    told = caught.value.told(config_of(), 2)
    assert isinstance(told, TrainError) and "\n" not in str(told)
    assert str(told).startswith("train: out of memory in the first batch, ")
    assert (asked_gib is None) or f"where {asked_gib:.2f} GiB more were asked for" in str(told)


def test_other_errors_and_the_inner_part_pass() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), memory_for("a training step"):
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(Shortage, match=r"^the first batch"), memory_for("building the model"), memory_for("the first batch"):
        torch.empty(1 << 50)
    assert asked_bytes("Tried to allocate 20.00 MiB.") == 20 * 2**20 and asked_bytes("no") is None


def test_nobody_is_started_again_for_it() -> None:
    policy = Forgiving(FailureConfig(max_failures=3))
    failed = SimpleNamespace(worker_failures={0: ConnectionError("closed by peer"), 1: Shortage("a training step").told(config_of(), 2)})
    assert policy.make_decision(failed) == FailureDecision.RAISE
    assert str(_named(failed, ResourcesConfig())) == str(failed.worker_failures[1]), "what the driver says then"


@pytest.mark.parametrize(
    ("config", "workers", "named", "absent"),
    [
        (
            config_of(),
            2,
            ["micro_batch_blocks (2)", "gradient_checkpointing: true", "bfloat16", "zero_stage: 3"],
            ["offload", "train.lora"],
        ),
        (config_of(gpus=1.0, lora=None), 2, ["offload: optimizer", "train with train.lora"], []),
        (config_of(workers=1), 1, ["pack.block_tokens (32)"], ["zero_stage"]),
        (
            config_of(gpus=1.0, zero_stage=3, offload="optimizer", gradient_checkpointing=True, precision="bfloat16", micro_batch_blocks=1),
            2,
            ["lower pack.block_tokens (32), or use larger machines"],
            ["micro", "checkpointing", "bfloat16", "zero", "offload"],
        ),
    ],
)
def test_only_what_is_not_lowered_yet_is_named(config: RunConfig, workers: int, named: list[str], absent: list[str]) -> None:
    told = str(Shortage("a training step").told(config, workers))
    assert all(text in told for text in named), told
    assert not any(text in told for text in absent), told
