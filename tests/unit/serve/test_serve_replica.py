"""What a replica makes of its config and its model folder, without Ray Serve around it."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import run_data
from tiny_bases import bert_folder, gpt2_folder, t5_folder
from zhlm.config.schema import RunConfig
from zhlm.serve.answers import Continuation, FillMask, TextToText
from zhlm.serve.protocol import Endpoint
from zhlm.serve.replica import Replica
from zhlm.serve.settings import read_model


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _replica(folder: Path, endpoint: Endpoint, objective: str, pack: dict[str, Any] | None = None, **serve: Any) -> Any:
    more = {"objective": objective, "serve": serve, "pack": {"block_tokens": 32} | (pack or {})}
    config = RunConfig.model_validate_json(json.dumps(run_data(folder) | more))
    return Replica(config, str(folder), endpoint, read_model(folder))


@pytest.mark.parametrize(
    ("make", "endpoint", "objective", "kind", "max_tokens"),
    [
        (bert_folder, "fill-mask", "masked", FillMask, 128),
        (t5_folder, "text-to-text", "span_corruption", TextToText, 32),
        (gpt2_folder, "text-to-text", "prefix", Continuation, 128),
    ],
)
def test_each_class_is_asked_in_its_way(
    make: Callable[[Path], Path], endpoint: Endpoint, objective: str, kind: type, max_tokens: int, tmp_path: Path
) -> None:
    replica = _replica(make(tmp_path), endpoint, objective, cpus_per_replica=1)
    assert (type(replica._answerer), replica._answerer.max_tokens) == (kind, max_tokens)
    assert torch.get_num_threads() == 1
    paths = asyncio.run(_paths(replica.__serve_build_asgi_app__()))
    assert {f"/v1/{endpoint}", "/v1/models", "/health"} <= paths


async def _paths(api: Any) -> set[str]:
    return {route.path for route in api.routes}


def test_batching_is_as_the_config_says(tmp_path: Path) -> None:
    replica = _replica(bert_folder(tmp_path), "fill-mask", "masked", max_batch_size=3, batch_wait_timeout_s=0.25, max_model_tokens=20)
    assert (replica._ask._get_max_batch_size(), replica._ask._get_batch_wait_timeout_s()) == (3, 0.25)
    assert replica._answerer.max_tokens == 20


def test_a_prompt_begins_as_documents_did_in_training(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path)
    assert _replica(folder, "text-to-text", "prefix")._answerer.start_ids == ()
    started = _replica(folder, "text-to-text", "prefix", {"document_start": "bos"})._answerer
    assert started.start_ids == (started.tokenizer.bos_token_id,)
