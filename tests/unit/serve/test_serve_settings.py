"""What vLLM is told, and what is refused before anything starts."""

import json
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest

from zhlm.config.schema import RunConfig
from zhlm.errors import RunError, ServeError
from zhlm.serve.settings import (
    check_port,
    check_servable,
    client_url,
    curl_example,
    head_width,
    llm_settings,
    max_model_tokens,
    model_folder,
    read_model,
)

LLAMA = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512, "hidden_size": 128, "num_attention_heads": 4}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "n_positions": 1024, "n_embd": 768, "n_head": 12}


def _config(**serve: Any) -> RunConfig:
    data = {"name": "tiny", "base": {"model": "x"}, "streams": [{"name": "zh", "role": "new", "paths": ["x"]}], "train": {"steps": 1}}
    return RunConfig.model_validate_json(json.dumps(data | {"serve": serve}))


def test_on_cpu_the_engine_is_float32_and_needs_no_gpu() -> None:
    settings = llm_settings(_config(cpus_per_replica=2, kv_cache_gib=3), Path("/m"), LLAMA)
    assert settings["model_loading_config"] == {"model_id": "tiny", "model_source": "/m"}
    assert settings["engine_kwargs"] == {"dtype": "float32", "max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 3 << 30}
    assert settings["placement_group_config"] == {"bundles": [{"CPU": 2}]}
    assert settings["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"


def test_on_gpu_the_engine_is_bfloat16_and_compiles() -> None:
    settings = llm_settings(_config(gpus_per_replica=1.0, replicas=2, model_id="zh-llama"), Path("/m"), LLAMA)
    assert settings["model_loading_config"]["model_id"] == "zh-llama"
    assert settings["engine_kwargs"] == {"dtype": "bfloat16", "max_model_len": 512}
    assert settings["placement_group_config"] == {"bundles": [{"CPU": 1, "GPU": 1.0}]}
    assert settings["deployment_config"]["num_replicas"] == 2


def test_nothing_of_a_server_asks_the_network() -> None:
    environment = llm_settings(_config(), Path("/m"), LLAMA)["runtime_env"]["env_vars"]
    assert (environment["HF_HUB_OFFLINE"], environment["VLLM_NO_USAGE_STATS"]) == ("1", "1")


@pytest.mark.parametrize(
    ("asked", "model", "tokens"), [(None, LLAMA, 512), (100, LLAMA, 100), (None, GPT2, 1024), (None, {}, None), (9, {}, 9)]
)
def test_longest_sequence(asked: int | None, model: dict[str, Any], tokens: int | None) -> None:
    assert max_model_tokens(_config(max_model_tokens=asked).serve, model) == tokens


def test_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ServeError, match="max_model_tokens 513 exceeds the model's 512 positions; lower it"):
        max_model_tokens(_config(max_model_tokens=513).serve, LLAMA)


def test_head_width_by_family() -> None:
    assert [head_width(m) for m in (LLAMA, GPT2, LLAMA | {"head_dim": 64}, {})] == [32, 64, 64, None]


def test_a_model_that_vllm_refuses_is_refused_before_it_starts() -> None:
    known = {"LlamaForCausalLM", "GPT2LMHeadModel"}
    check_servable(LLAMA, known, [32, 64])
    check_servable(LLAMA | {"head_dim": 16}, known, None)
    with pytest.raises(ServeError, match="heads are 16 wide, vLLM on CPU takes 32, 64"):
        check_servable(LLAMA | {"head_dim": 16}, known, [32, 64])
    with pytest.raises(ServeError, match="causal language models, this one is BertForMaskedLM"):
        check_servable({"architectures": ["BertForMaskedLM"]}, known, None)


def test_a_run_without_export_says_which_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no model; run `python -m ray_jobs\.export`"):
        model_folder(tmp_path / "export")


def test_a_broken_model_config_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be read"):
        read_model(tmp_path)


def test_a_port_in_use_is_refused_and_a_free_one_is_not() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"127.0.0.1:{port} cannot be used .*choose another serve.port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_an_unknown_host_is_refused() -> None:
    with pytest.raises(ServeError, match="cannot be used"):
        check_port("no such host", 8000)


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:8000/v1"), ("0.0.0.0", "http://127.0.0.1:8000/v1"), ("::", "http://[::1]:8000/v1")]
)
def test_where_a_client_finds_the_server(host: str, url: str) -> None:
    assert client_url(_config(host=host).serve) == url


def test_the_curl_example_survives_the_shell() -> None:
    words = shlex.split(curl_example("http://h/v1", "m", "it's 今天"))
    assert words[:2] == ["curl", "http://h/v1/completions"]
    assert json.loads(words[-1])["prompt"] == "it's 今天"
