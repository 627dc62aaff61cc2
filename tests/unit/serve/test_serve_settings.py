"""How a model is served, what vLLM is told, and what is refused before anything starts."""

import json
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest

from tiny_bases import bert_tokenizer, gpt2_tokenizer, t5_tokenizer
from zhlm.config.schema import RunConfig
from zhlm.errors import RunError, ServeError
from zhlm.serve.protocol import Endpoint, FillMaskRequest, Request, TextToTextRequest
from zhlm.serve.settings import (
    check_port,
    check_servable,
    client_url,
    curl_example,
    endpoint_of,
    example_text,
    head_width,
    llm_settings,
    max_model_tokens,
    model_folder,
    read_model,
)

LLAMA = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512, "hidden_size": 128, "num_attention_heads": 4}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "n_positions": 1024, "n_embd": 768, "n_head": 12}


BERT = {
    "architectures": ["BertForMaskedLM"], "model_type": "bert", "max_position_embeddings": 512, "hidden_size": 64,
    "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9,
}  # fmt: skip
ROBERTA = BERT | {"architectures": ["RobertaForMaskedLM"], "model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
T5 = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "n_positions": 512, "d_model": 8, "d_kv": 4, "d_ff": 8,
    "num_heads": 2, "num_layers": 1, "vocab_size": 9, "is_encoder_decoder": True,
}  # fmt: skip


def _config(objective: str = "causal", prompts: tuple[str, ...] = (), **serve: Any) -> RunConfig:
    data = {"name": "tiny", "base": {"model": "x"}, "streams": [{"name": "zh", "role": "new", "paths": ["x"]}], "train": {"steps": 1}}
    more = {"serve": serve, "objective": objective, "evaluate": {"prompts": prompts}}
    return RunConfig.model_validate_json(json.dumps(data | more))


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


@pytest.mark.parametrize(
    ("objective", "model", "endpoint"),
    [
        ("causal", LLAMA, "completions"),
        ("causal", GPT2 | {"model_type": "gpt2"}, "completions"),
        ("prefix", LLAMA, "text-to-text"),
        ("masked", BERT, "fill-mask"),
        ("masked", ROBERTA, "fill-mask"),
        ("span_corruption", T5, "text-to-text"),
    ],
)
def test_the_class_decides_what_is_asked_and_prefix_models_are_not_for_vllm(objective: str, model: dict[str, Any], endpoint: str) -> None:
    assert endpoint_of(_config(objective), model) == endpoint


def test_longest_sequence_of_those_that_vllm_does_not_serve() -> None:
    assert [max_model_tokens(_config().serve, model) for model in (BERT, ROBERTA, T5)] == [512, 512, None]
    assert max_model_tokens(_config(max_model_tokens=2000).serve, T5) == 2000
    with pytest.raises(ServeError, match="max_model_tokens 513 exceeds the model's 512 positions"):
        max_model_tokens(_config(max_model_tokens=513).serve, ROBERTA)


def test_the_text_to_try_has_what_the_model_asks_for() -> None:
    assert example_text(_config(prompts=("today",)), "completions", None) == "today"
    assert example_text(_config(), "fill-mask", bert_tokenizer()) == "Once[MASK]"
    assert example_text(_config(prompts=("a", "b[MASK]c")), "fill-mask", bert_tokenizer()) == "b[MASK]c"
    assert example_text(_config(prompts=("a",)), "text-to-text", t5_tokenizer()) == "a <extra_id_0>"
    assert example_text(_config(prompts=("a", "b<extra_id_0>c")), "text-to-text", t5_tokenizer()) == "b<extra_id_0>c"
    assert example_text(_config(prompts=("a", "b")), "text-to-text", gpt2_tokenizer()) == "a"


def test_a_masked_model_whose_tokenizer_has_no_mask_is_refused() -> None:
    with pytest.raises(ServeError, match=r"has no mask token.*name one in vocab\.special_tokens"):
        example_text(_config(), "fill-mask", gpt2_tokenizer())


@pytest.mark.parametrize(("endpoint", "named"), [("completions", "prompt"), ("fill-mask", "input"), ("text-to-text", "input")])
def test_the_curl_example_survives_the_shell(endpoint: Endpoint, named: str) -> None:
    words = shlex.split(curl_example("http://h/v1", endpoint, "m", "it's 今天"))
    assert words[:2] == ["curl", f"http://h/v1/{endpoint}"]
    assert json.loads(words[-1])[named] == "it's 今天"


def test_the_curl_examples_are_requests_that_the_server_takes() -> None:
    kinds: list[tuple[Endpoint, type[Request]]] = [("fill-mask", FillMaskRequest), ("text-to-text", TextToTextRequest)]
    for endpoint, kind in kinds:
        kind.model_validate_json(shlex.split(curl_example("u", endpoint, "m", "text"))[-1])
