"""Routes, status codes and deadlines, by HTTP requests to the application itself, without Ray and without a model."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import HTTPException

from zhlm.serve.answers import Question
from zhlm.serve.api import make_api
from zhlm.serve.protocol import Endpoint, FilledText, Guessed, WrittenTexts

GUESS = Guessed(token="天", token_id=7, score=0.5, text="今天")


class Fake:
    """Takes every text but the empty one."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def question(self, name: str, text: str, request: Any, deadline_s: float) -> Question:
        if not text:
            raise HTTPException(400, f"{name} is empty")
        return Question(text, [1], [], request, deadline_s)

    def answer(self, questions: Any) -> list[Any]:
        raise NotImplementedError


async def _fill(question: Question) -> FilledText:
    return FilledText(text=question.text.upper(), masks=[[GUESS] * question.request.top_k])


async def _write(question: Question) -> WrittenTexts:
    return WrittenTexts(texts=[question.text.upper()] * question.request.num_return_sequences)


def _asked(
    method: str,
    path: str,
    body: Any = None,
    *,
    endpoint: Endpoint = "fill-mask",
    ask: Callable[[Question], Awaitable[Any]] | None = None,
    timeout_s: float = 5.0,
) -> tuple[int, Any]:
    api = make_api(Fake(endpoint), ask or (_fill if endpoint == "fill-mask" else _write), "tiny", timeout_s)

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api), base_url="http://zhlm") as client:
            return await client.request(method, path, json=body)

    answer = asyncio.run(send())
    return answer.status_code, answer.json()


def test_one_text_and_several_are_answered_in_order() -> None:
    assert _asked("POST", "/v1/fill-mask", {"input": "a", "top_k": 1}) == (
        200,
        {"model": "tiny", "results": [{"text": "A", "masks": [[GUESS.model_dump()]]}]},
    )
    status, answer = _asked("POST", "/v1/fill-mask", {"input": ["a", "b", "a"]})
    assert (status, [r["text"] for r in answer["results"]]) == (200, ["A", "B", "A"])
    assert [len(r["masks"][0]) for r in answer["results"]] == [5, 5, 5], "top_k is 5 where nothing else is said"


def test_texts_are_written_as_often_as_asked_for() -> None:
    body = {"input": ["a", "b"], "temperature": 0.7, "top_p": 0.9, "num_return_sequences": 2, "max_new_tokens": 3}
    assert _asked("POST", "/v1/text-to-text", body, endpoint="text-to-text") == (
        200,
        {"model": "tiny", "results": [{"texts": ["A", "A"]}, {"texts": ["B", "B"]}]},
    )


def test_the_texts_of_a_request_are_asked_together() -> None:
    waiting: list[str] = []

    async def ask(question: Question) -> FilledText:
        waiting.append(question.text)
        while len(waiting) < 3:  # ends only if all are there
            await asyncio.sleep(0)
        return await _fill(question)

    assert _asked("POST", "/v1/fill-mask", {"input": ["a", "b", "c"]}, ask=ask)[0] == 200


def test_models_and_health_are_as_the_causal_server_has_them() -> None:
    status, models = _asked("GET", "/v1/models")
    assert (status, [m["id"] for m in models["data"]]) == (200, ["tiny"])
    assert _asked("GET", "/health") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"input": ""}, "input is empty"),
        ({"input": ["a", ""]}, "input.1 is empty"),
        ({"input": []}, "input is an empty list; send at least one text"),
    ],
)
def test_a_text_that_cannot_be_answered_is_one_line(body: Any, line: str) -> None:
    assert _asked("POST", "/v1/fill-mask", body) == (400, {"detail": line})


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({}, "body.input: Field required"),
        ({"input": "a", "top_k": 0}, "body.top_k: Input should be greater than or equal to 1"),
        ({"input": "a", "topk": 5}, "body.topk: Extra inputs are not permitted"),
        ({"input": 3}, "body.input.constrained-str: Input should be a valid string"),
    ],
)
def test_a_request_of_another_form_is_one_line(body: Any, line: str) -> None:
    assert _asked("POST", "/v1/fill-mask", body) == (422, {"detail": line})


def test_settings_that_contradict_each_other_are_named() -> None:
    status, answer = _asked("POST", "/v1/text-to-text", {"input": "a", "num_return_sequences": 3}, endpoint="text-to-text")
    assert status == 422
    assert answer["detail"] == (
        "body: num_return_sequences is 3 and temperature 0, which gives one text so many times; set a temperature above 0"
    )


def test_another_route_says_which_ones_there_are() -> None:
    status, answer = _asked("POST", "/v1/completions", {"prompt": "a"})
    assert status == 404
    assert answer["detail"] == "there is no /v1/completions; this model answers POST /v1/fill-mask, GET /v1/models and GET /health"


def test_a_deadline_ends_the_request_and_what_it_waits_for() -> None:
    ended: list[str] = []

    async def ask(question: Question) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(question.text)
            raise

    status, answer = _asked("POST", "/v1/fill-mask", {"input": ["a", "b"]}, ask=ask, timeout_s=0.05)
    assert (status, answer["detail"]) == (504, "no answer within 0.05 s; ask for less, or raise serve.request_timeout_s")
    assert sorted(ended) == ["a", "b"]
