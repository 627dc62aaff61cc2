"""Masked, sequence-to-sequence and prefix models in Ray Serve: each replica holds the model and is its own HTTP ingress."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve

from zhlm.config.schema import RunConfig
from zhlm.model.load import load_model
from zhlm.serve.answers import Answerer, Continuation, FillMask, Question, TextToText
from zhlm.serve.api import make_api
from zhlm.serve.protocol import Endpoint
from zhlm.serve.settings import max_model_tokens
from zhlm.tokenizer.load import load_tokenizer
from zhlm.tokenizer.special import document_token

MAX_ONGOING_REQUESTS = 1000
"""More wait at the proxy. Few wait there, because a deadline begins here, and because /health shall answer under load."""


class Replica:
    """The model, and the texts that are about to go through it together."""

    def __init__(self, config: RunConfig, folder: str, endpoint: Endpoint, model: dict[str, Any]) -> None:
        torch.set_num_threads(config.serve.cpus_per_replica)
        torch.seed()  # the fixed seed of a new process would give all replicas the same samples
        self._config = config
        self._answerer = _load(config, folder, endpoint, max_model_tokens(config.serve, model) or config.pack.block_tokens)
        self._ask.set_max_batch_size(config.serve.max_batch_size)
        self._ask.set_batch_wait_timeout_s(config.serve.batch_wait_timeout_s)

    @serve.batch  # type: ignore[untyped-decorator]
    async def _ask(self, questions: list[Question]) -> Sequence[Any]:
        """Called with one question; Serve collects them. In a thread, so that requests and /health are read meanwhile."""
        return await asyncio.to_thread(self._answerer.answer, questions)

    def __serve_build_asgi_app__(self) -> FastAPI:
        settings = self._config.serve
        return make_api(self._answerer, self._ask, settings.model_id or self._config.name, settings.request_timeout_s)


def _load(config: RunConfig, folder: str, endpoint: Endpoint, max_tokens: int) -> Answerer:
    """As vLLM has it: bfloat16 on a GPU, float32 on a CPU."""
    gpu = bool(config.serve.gpus_per_replica)
    model: Any = load_model(folder, dtype=torch.bfloat16 if gpu else torch.float32)
    model, tokenizer = model.to("cuda" if gpu else "cpu"), load_tokenizer(folder)
    if endpoint == "fill-mask":
        return FillMask(model, tokenizer, max_tokens)
    if model.config.is_encoder_decoder:
        return TextToText(model, tokenizer, max_tokens)
    start = document_token(tokenizer, config.pack.document_start)
    return Continuation(model, tokenizer, max_tokens, start_ids=(start.id,) if start else ())


def application(config: RunConfig, folder: Path, endpoint: Endpoint, model: dict[str, Any]) -> Any:
    """The Serve application of a merged folder, whose config.json `model` is."""
    deployment = serve.deployment(
        name=endpoint,
        num_replicas=config.serve.replicas,
        ray_actor_options={"num_cpus": config.serve.cpus_per_replica, "num_gpus": config.serve.gpus_per_replica},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
    )
    return deployment(serve.ingress()(Replica)).bind(config, str(folder), endpoint, model)
