"""How a model is served and what vLLM is told, computed from the run's config and the model folder: plain data, no Ray, no vLLM."""

import json
import shlex
import socket
from pathlib import Path
from typing import Any

from zhlm.config.schema import RunConfig
from zhlm.config.serve import ServeConfig
from zhlm.errors import RunError, ServeError
from zhlm.model.kind import kind_of
from zhlm.model.shape import KNOWN, shape_of
from zhlm.serve.protocol import Endpoint

POSITION_KEYS = ("max_position_embeddings", "n_positions", "seq_length")
"""Where a Hugging Face config keeps the longest sequence, by family: most, GPT-2, BLOOM."""
SENTINEL = "<extra_id_0>"
"""Of T5: a gap to fill."""


def model_folder(export: Path) -> Path:
    """The merged model of a run. Raises: RunError when export has not written it."""
    folder = export / "merged"
    if not (folder / "config.json").is_file():
        raise RunError(
            f"serve: {folder} holds no model; run `python -m ray_jobs.export` or the whole pipeline first, then serve again",
            path=str(folder),
        )
    return folder


def read_model(folder: Path) -> dict[str, Any]:
    """The Hugging Face config of a model folder."""
    try:
        model: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"serve: {folder / 'config.json'} cannot be read ({error}); delete {folder.parent} and export again") from error
    return model


def endpoint_of(config: RunConfig, model: dict[str, Any]) -> Endpoint:
    """What a merged model is asked. vLLM reads prompts causally, which is not how a prefix model was trained: that is not for it."""
    kind = kind_of(model)
    if kind == "encoder":
        return "fill-mask"
    return "text-to-text" if kind == "encoder_decoder" or config.objective.name == "prefix" else "completions"


def example_text(config: RunConfig, endpoint: Endpoint, tokenizer: Any) -> str:
    """A text to try: a prompt of the run, with a mask or a sentinel where the model asks for one. `completions` needs no tokenizer.

    Raises: ServeError for a masked model whose tokenizer has no mask token.
    """
    prompt = next(iter(config.evaluate.prompts), "Once")
    if endpoint == "completions":
        return prompt
    sentinel = any(name in tokenizer.get_vocab() for name in (SENTINEL, f"\u2581{SENTINEL}"))  # T5's, mT5's
    gap = tokenizer.mask_token if endpoint == "fill-mask" else f" {SENTINEL}" * sentinel
    if gap is None:
        raise ServeError("serve: the tokenizer has no mask token, so nothing can be filled; name one in vocab.special_tokens and run again")
    return next((p for p in config.evaluate.prompts if gap.strip() in p), prompt + gap)


def max_model_tokens(serve: ServeConfig, model: dict[str, Any]) -> int | None:
    """Longest prompt plus answer: what was asked for, else the model's positions; None where they have no limit that its config names.

    Raises: ServeError when more is asked for than the model has.
    """
    positions = _positions(model)
    if serve.max_model_tokens and positions and serve.max_model_tokens > positions:
        raise ServeError(
            f"serve: max_model_tokens {serve.max_model_tokens} exceeds the model's {positions} positions; lower it or set null"
        )
    return serve.max_model_tokens or positions


def _positions(model: dict[str, Any]) -> int | None:
    if kind_of(model) != "decoder" and model.get("model_type") in KNOWN:
        return shape_of(model).positions  # RoBERTa has fewer than its config says, and T5 no limit even where it names one
    return next((int(model[key]) for key in POSITION_KEYS if model.get(key)), None)


def head_width(model: dict[str, Any]) -> int | None:
    """Width of an attention head; None when the config does not tell."""
    width, heads = (model.get(a) or model.get(b) for a, b in (("hidden_size", "n_embd"), ("num_attention_heads", "n_head")))
    return model.get("head_dim") or (width // heads if width and heads else None)


def check_servable(model: dict[str, Any], architectures: set[str], head_widths: list[int] | None) -> None:
    """Raises: ServeError for a model that vLLM would refuse deep in one of its processes; `head_widths` None: any."""
    names = model.get("architectures") or []
    if not architectures.intersection(names):
        raise ServeError(f"serve: vLLM serves causal language models, this one is {', '.join(names) or 'unnamed'}; use transformers for it")
    width = head_width(model)
    if head_widths and width and width not in head_widths:
        known = ", ".join(str(w) for w in head_widths)
        raise ServeError(f"serve: attention heads are {width} wide, vLLM on CPU takes {known}; use a base with such heads, or a GPU")


def llm_settings(config: RunConfig, folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `ray.serve.llm.LLMConfig`."""
    serve = config.serve
    engine: dict[str, Any] = {"dtype": "bfloat16" if serve.gpus_per_replica else "float32"}
    tokens = max_model_tokens(serve, model)
    if tokens:
        engine["max_model_len"] = tokens
    bundle: dict[str, float] = {"CPU": serve.cpus_per_replica}
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if serve.gpus_per_replica:
        bundle["GPU"] = serve.gpus_per_replica
    else:
        # Compiling costs minutes at the start and gains little on CPU. vLLM would pin its threads to cores of its own choosing and so
        # put every replica of a machine on the same ones.
        engine |= {"enforce_eager": True, "kv_cache_memory_bytes": serve.kv_cache_gib << 30}
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(serve.cpus_per_replica)}
    return {
        "model_loading_config": {"model_id": serve.model_id or config.name, "model_source": str(folder)},
        "engine_kwargs": engine,
        "placement_group_config": {"bundles": [bundle]},
        "runtime_env": {"env_vars": environment},
        # The bundle is what a replica takes; the actor in it adds nothing.
        "deployment_config": {"num_replicas": serve.replicas, "ray_actor_options": {"num_cpus": 0}},
        "callback_config": {"callback_class": "zhlm.serve.engine:NoDownload"},
    }


def check_port(host: str, port: int) -> None:
    """Raises: ServeError when the port cannot be bound."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ServeError(
            f"serve: {host}:{port} cannot be used ({error.strerror}); stop what listens there, or choose another serve.port or serve.host",
            host=host,
            port=port,
        ) from error


def client_url(serve: ServeConfig) -> str:
    """Where a client on this machine finds the server: a host that means every address becomes the local one."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serve.host, serve.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{serve.port}/v1"


def curl_example(url: str, endpoint: Endpoint, model_id: str, text: str) -> str:
    """A command line that asks the server."""
    asked: dict[Endpoint, dict[str, Any]] = {
        "completions": {"model": model_id, "prompt": text, "max_tokens": 32, "temperature": 0},
        "fill-mask": {"input": text, "top_k": 5},
        "text-to-text": {"input": text, "max_new_tokens": 32},
    }
    body = json.dumps(asked[endpoint], ensure_ascii=False)
    return f"curl {url}/{endpoint} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
