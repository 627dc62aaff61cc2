"""A world that cannot hold the model is refused before workers start: which part, how much, what to lower."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import run_data
from zhlm import cluster
from zhlm.config.objective import SpanCorruptionConfig
from zhlm.config.schema import RunConfig
from zhlm.errors import ClusterError
from zhlm.submit.memory import count_parameters, worker_memory
from zhlm.submit.preflight import check_memory
from zhlm.submit.sources import trained_shape

WIDE = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
    "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip
GIB = 2**30


def config_of(folder: Path, workers: int = 2, gpus: float = 0.0, **train: Any) -> RunConfig:
    (folder / "base").mkdir(exist_ok=True)
    (folder / "base" / "config.json").write_text(json.dumps(WIDE))
    data = run_data(folder, **train)
    data["resources"] |= {"workers": workers, "gpus_per_worker": gpus}
    return RunConfig.model_validate_json(json.dumps(data))


def test_what_surely_does_not_fit_is_refused_with_its_parts(tmp_path: Path) -> None:
    config = config_of(tmp_path, gpus=1.0, precision="bfloat16", embeddings="none")
    check_memory(config, None)
    check_memory(config, (80 * GIB, "the A100"))
    with pytest.raises(ClusterError) as caught:
        check_memory(config, (8 * GIB, "the P4"))
    told = str(caught.value)
    weights = worker_memory(config, trained_shape(config)[0], 2)[0]
    assert told.startswith("train: each of 2 workers needs at least 12.") and f"(weights {weights.size_bytes / GIB:.2f} GiB, " in told
    assert "activations come on top), the P4 has 8.00 GiB for it; lower train.micro_batch_blocks (2)," in told and "\n" not in told
    assert "set train.zero_stage: 3" in told and "bfloat16" not in told


def test_what_lies_in_cpu_memory_beside_a_gpu_does_not_count(tmp_path: Path) -> None:
    full = {"lora": None, "precision": "bfloat16", "zero_stage": 2}
    room = (50 * GIB, "the A100")
    with pytest.raises(ClusterError, match="optimizer states"):
        check_memory(config_of(tmp_path, gpus=1.0, **full), room)
    check_memory(config_of(tmp_path, gpus=1.0, **full, offload="optimizer"), room)
    with pytest.raises(ClusterError, match="optimizer states"):
        check_memory(config_of(tmp_path, **full, offload="optimizer"), room)


def test_a_base_of_unknown_sizes_is_not_judged(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    check_memory(config, (1, "this cluster"))


T5 = {
    "model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"], "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8,
    "num_decoder_layers": 8, "num_heads": 6, "vocab_size": 250112, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip


def test_an_encoder_decoder_writes_less_than_it_reads(tmp_path: Path) -> None:
    """mt5-small as the hub has it: 300 M parameters, of which two tables of 128 M. At 15% in spans of 3 it writes 0.2 of a block."""
    config = config_of(tmp_path, lora=None).model_copy(update={"objective": SpanCorruptionConfig()})
    (tmp_path / "base" / "config.json").write_text(json.dumps(T5))
    shape, final = trained_shape(config)
    assert final and not shape.tied and count_parameters(config, shape).trainable == 300_176_768
    parts = {p.name: p.size_bytes for p in worker_memory(config, shape, 2)}
    assert parts["logits"] == round(2 * 32 * 0.2) * 250112 * 12
    assert parts["activations"] == pytest.approx(64 * 4 * 8 * (0.9 * 10_240 + 0.2 * 13_824), rel=1e-6)
    drawn = config.model_copy(update={"base": config.base.model_copy(update={"from_scratch": True})})
    assert trained_shape(drawn)[0].tied and count_parameters(drawn, trained_shape(drawn)[0]).trainable == 300_176_768 - 250112 * 512


NODES = [
    {"Alive": True, "Resources": {"CPU": 4.0, "memory": 6.0 * GIB, "object_store_memory": 2.0 * GIB}},
    {"Alive": True, "Resources": {"GPU": 1.0, "memory": 30.0 * GIB, "accelerator_type:A10G": 1.0}},
    {"Alive": True, "Resources": {"GPU": 1.0, "memory": 30.0 * GIB, "accelerator_type:T4": 1.0}},
    {"Alive": False, "Resources": {"GPU": 1.0, "memory": 900.0 * GIB, "accelerator_type:H200": 1.0}},
]


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "expected"),
    [
        (NODES, 2, 1.0, (24 * GIB, "the A10G")),
        (NODES, 2, 0.5, (12 * GIB, "the A10G")),
        (NODES, 1, 0.0, (30 * GIB, "this cluster")),
        (NODES, 4, 0.0, (17 * GIB, "this cluster")),
        ([*NODES, {"Alive": True, "Resources": {"GPU": 1.0, "accelerator_type:New": 1.0}}], 2, 1.0, None),
        (NODES[:1], 1, 1.0, None),
    ],
)
def test_room_is_what_the_best_place_has(
    nodes: list[dict[str, Any]], workers: int, gpus: float, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster.state.state, "get_max_resources_from_cluster_config", dict)
    assert cluster.worker_room(config_of(tmp_path, workers, gpus)) == expected
    monkeypatch.setattr(cluster.state.state, "get_max_resources_from_cluster_config", lambda: {"CPU": 64.0})
    assert cluster.worker_room(config_of(tmp_path, workers, gpus)) is None, "other nodes may come"
