"""The HTTP interface of a replica: routes, status codes, deadlines. What is wrong is one line, `{"detail": "..."}`."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from zhlm.serve.answers import Answerer, Question
from zhlm.serve.protocol import Failure, FillMaskAnswer, FillMaskRequest, Request, TextToTextAnswer, TextToTextRequest

FAILURES: dict[int | str, dict[str, Any]] = {status: {"model": Failure} for status in (400, 404, 422, 504)}


def make_api(answerer: Answerer, ask: Callable[[Question], Awaitable[Any]], model_id: str, timeout_s: float) -> FastAPI:
    """`ask` gives the answer to one question; questions of one request are asked together."""
    api = FastAPI(title=f"zhlm: {model_id}", responses=FAILURES)
    path = f"/v1/{answerer.endpoint}"

    async def results(request: Request) -> list[Any]:
        questions = _questions(answerer, request, time.monotonic() + timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.gather(*(ask(question) for question in questions))
        except TimeoutError:
            raise HTTPException(504, f"no answer within {timeout_s:g} s; ask for less, or raise serve.request_timeout_s") from None

    if answerer.endpoint == "fill-mask":

        @api.post(path)
        async def fill_mask(request: FillMaskRequest) -> FillMaskAnswer:
            return FillMaskAnswer(model=model_id, results=await results(request))

    else:

        @api.post(path)
        async def text_to_text(request: TextToTextRequest) -> TextToTextAnswer:
            return TextToTextAnswer(model=model_id, results=await results(request))

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": model_id, "object": "model", "created": 0, "owned_by": "zhlm", "endpoint": path}]}

    @api.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @api.exception_handler(404)
    async def unknown(request: HttpRequest, _: Exception) -> JSONResponse:
        here = f"this model answers POST {path}, GET /v1/models and GET /health"
        return JSONResponse({"detail": f"there is no {request.url.path}; {here}"}, 404)

    @api.exception_handler(RequestValidationError)
    async def malformed(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"detail": f"{place}: {first['msg'].removeprefix('Value error, ')}"}, 422)

    return api


def _questions(answerer: Answerer, request: Request, deadline_s: float) -> list[Question]:
    """Raises: HTTPException 400 for the first text that cannot be answered."""
    if isinstance(request.input, str):
        return [answerer.question("input", request.input, request, deadline_s)]
    if not request.input:
        raise HTTPException(400, "input is an empty list; send at least one text")
    return [answerer.question(f"input.{n}", text, request, deadline_s) for n, text in enumerate(request.input)]
