"""The routes over a backend that does as it is told: statuses, errors within streams, limits, disconnects."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from llmos.errors import (
    AuthError,
    CapacityError,
    ContextLengthError,
    DeadlineError,
    EngineError,
    ForbiddenError,
    WorkerLost,
)
from llmos.openai.caller import Caller
from llmos.openai.replies import ModelCard, model_card
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.server import create_app
from llmos.openai.sse import DONE, sse
from tests.unit.openai.world import listening

Script = list[bytes | Exception]
BODY = {"model": "m", "prompt": "x"}


class Scripted:
    """Yields bytes and raises errors as scripted; waits for ever at the end if ``stuck``."""

    def __init__(self, script: Script, *, stuck: bool = False) -> None:
        self.script, self.stuck = script, stuck
        self.waiting, self.closed = threading.Event(), threading.Event()

    async def models(self) -> Sequence[ModelCard]:
        return [model_card("m", 7), model_card("org/other", 8)]

    async def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        self.caller = caller
        try:
            for item in self.script:
                if isinstance(item, Exception):
                    raise item
                yield item
            if self.stuck:
                self.waiting.set()
                await asyncio.Event().wait()
        finally:
            self.closed.set()


async def _allowed(request: Request, scope: str) -> Caller:
    assert scope == "infer"
    if "Authorization" not in request.headers:
        raise AuthError("no key", hint="Send one.")
    if request.headers["Authorization"] == "Bearer submit-nothing":
        raise ForbiddenError("not with this key")
    return Caller("me")


def _app(script: Script, **options: Any) -> FastAPI:
    return create_app(Scripted(script), _allowed, **options)


async def _ask(app: FastAPI, method: str = "POST", path: str = "/v1/completions", **options: Any) -> httpx.Response:
    options = {"headers": {"Authorization": "Bearer k"}, **({"json": BODY} if method == "POST" else {}), **options}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, **options)


async def test_one_piece_is_the_answer() -> None:
    found = await _ask(_app([b'{"a":1}']))
    assert (found.status_code, found.json(), found.headers["content-type"]) == (200, {"a": 1}, "application/json")


async def test_the_backend_learns_who_asks() -> None:
    backend = Scripted([b"{}"])
    await _ask(create_app(backend, _allowed))
    assert backend.caller.key == "me"


async def test_pieces_are_streamed_as_they_are() -> None:
    found = await _ask(_app([sse({"a": 1}), sse({"b": 2}) + DONE]), json={**BODY, "stream": True})
    assert found.text == 'data: {"a":1}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n'
    assert found.headers["content-type"].startswith("text/event-stream")
    assert found.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (ContextLengthError("too long", param="prompt"), 400, "invalid_request_error", "context_length_exceeded"),
        (CapacityError("full", retry_after_s=2.5), 429, "rate_limit_error", "rate_limit_exceeded"),
        (EngineError("broken", hint="Restart."), 503, "server_error", "engine"),
        (WorkerLost("gone"), 503, "server_error", "worker_lost"),
        (DeadlineError("late"), 504, "server_error", "deadline"),
        (ZeroDivisionError("secret"), 500, "server_error", "internal_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_errors_before_and_within_a_stream(error: Exception, status: int, kind: str, code: str) -> None:
    for streamed in (False, True):
        before = await _ask(_app([error]), json={**BODY, "stream": streamed})
        assert before.status_code == status
        assert (before.json()["error"]["type"], before.json()["error"]["code"]) == (kind, code)
        assert "secret" not in before.text
    assert before.headers.get("retry-after") == ("3" if status == 429 else None)
    within = await _ask(_app([sse({"a": 1}), error]), json={**BODY, "stream": True})
    assert within.status_code == 200
    first, second = within.text.strip().split("\n\n")
    assert first == 'data: {"a":1}'
    assert json.loads(second.removeprefix("data: ")) == before.json()


async def test_the_key_is_checked_before_the_body_is_read() -> None:
    found = await _ask(_app([]), headers={}, content=b"{not json", json=None)
    assert found.status_code == 401
    assert found.json()["error"] == {
        "message": "no key. Send one.",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
    found = await _ask(_app([]), headers={"Authorization": "Bearer submit-nothing"})
    assert (found.status_code, found.json()["error"]["type"]) == (403, "permission_error")


async def test_models_with_slashes_have_an_address() -> None:
    found = await _ask(_app([]), "GET", "/v1/models/org/other")
    assert found.json() == {"id": "org/other", "object": "model", "created": 8, "owned_by": "llmos"}
    assert [card["id"] for card in (await _ask(_app([]), "GET", "/v1/models")).json()["data"]] == ["m", "org/other"]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{not json", 400, "the body is not JSON"),
        (b"", 400, "not an object"),
        (b"[1]", 400, "not an object"),
        (b'{"model": "m", "prompt": "' + b"x" * 2000 + b'"}', 413, "too large: expected at most 1000 bytes"),
        (b"[" * 999, 400, ""),
        (b'{"model": "m", "prompt": "x", "seed": ' + b"9" * 900 + b"}", 400, "seed"),
        (b'{"model": "m", "prompt": "x", "temperature": NaN}', 400, "temperature"),
        (b'{"model": "\xff", "prompt": "x"}', 400, ""),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else "",
)
async def test_bodies_that_are_none(content: bytes, status: int, message: str) -> None:
    headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
    found = await _ask(_app([b"{}"], max_body_bytes=1000), json=None, content=content, headers=headers)
    assert found.status_code == status
    assert found.json()["error"]["type"] == "invalid_request_error"
    assert message in found.json()["error"]["message"]


async def test_unknown_addresses_and_methods_have_openais_shape() -> None:
    assert (await _ask(_app([]), "GET", "/v1/files")).json()["error"]["message"] == "There is no /v1/files."
    found = await _ask(_app([]), "GET", "/v1/completions")
    assert (found.status_code, found.headers["allow"]) == (405, "POST")
    assert found.json()["error"]["message"] == "/v1/completions does not take GET."


@pytest.mark.parametrize("script", [[], [b"data: 1\n\n"]], ids=["before the first piece", "within the stream"])
def test_who_leaves_closes_the_answer(script: Script) -> None:
    backend = Scripted(script, stuck=True)
    with listening(create_app(backend, _allowed)) as url, httpx.Client(timeout=0.2) as client:
        with (
            pytest.raises(httpx.ReadTimeout),
            client.stream(
                "POST", f"{url}/v1/completions", json={**BODY, "stream": True}, headers={"Authorization": "Bearer k"}
            ) as response,
        ):
            response.read()
        assert backend.waiting.is_set()
        assert backend.closed.wait(5)
