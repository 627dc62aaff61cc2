"""What vLLM is told, computed from the run's config and the model folder: plain data, no Ray, no vLLM."""

import json
import shlex
import socket
from pathlib import Path
from typing import Any

from zhlm.config.schema import RunConfig, ServeConfig
from zhlm.errors import RunError, ServeError

POSITION_KEYS = ("max_position_embeddings", "n_positions", "seq_length")
"""Where a Hugging Face config keeps the longest sequence, by family: most, GPT-2, BLOOM."""


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


def max_model_tokens(serve: ServeConfig, model: dict[str, Any]) -> int | None:
    """Longest prompt plus answer: what was asked for, else the model's positions; None leaves it to vLLM.

    Raises: ServeError when more is asked for than the model has.
    """
    positions = next((int(model[key]) for key in POSITION_KEYS if model.get(key)), None)
    if serve.max_model_tokens and positions and serve.max_model_tokens > positions:
        raise ServeError(
            f"serve: max_model_tokens {serve.max_model_tokens} exceeds the model's {positions} positions; lower it or set null"
        )
    return serve.max_model_tokens or positions


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


def curl_example(url: str, model_id: str, prompt: str) -> str:
    """A command line that asks the server for a completion."""
    body = json.dumps({"model": model_id, "prompt": prompt, "max_tokens": 32, "temperature": 0}, ensure_ascii=False)
    return f"curl {url}/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}"
