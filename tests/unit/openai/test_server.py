"""The routes over a backend that does as it is told: statuses, errors within streams, limits, disconnects."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request

from llmos.errors import (
    AuthError,
    CapacityError,
    ConflictError,
    ContextLengthError,
    DeadlineError,
    EngineError,
    ForbiddenError,
    WorkerLost,
)
from llmos.openai import answering
from llmos.openai.caller import Caller
from llmos.openai.embeddings import EmbeddingRequest, embedding_reply
from llmos.openai.idempotency import KEEP_S, MAX_ANSWER_BYTES, MAX_ANSWERS, MAX_BYTES, REPLAYED, Replays
from llmos.openai.replies import ModelCard, model_card
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.server import create_app
from llmos.openai.sse import DONE, sse
from llmos.openai.tokens import DetokenizeRequest, TokenizeRequest, text_reply, tokens_reply
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

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> bytes:
        return embedding_reply(request, np.array([[3, 0, 4]] * len(request.inputs), np.float32) / 5, 7)

    async def tokenize(self, request: TokenizeRequest, caller: Caller) -> bytes:
        return tokens_reply([1, 2], 64, None)

    async def detokenize(self, request: DetokenizeRequest, caller: Caller) -> bytes:
        return text_reply("xy")

    async def remove(self, model: str, authorization: str | None) -> None:
        self.removed = model, authorization


class Counting(Scripted):
    """Says how often it was asked."""

    asked = 0

    async def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        self.asked += 1
        yield sse({"asked": self.asked}) + DONE if request.stream else b'{"asked": %d}' % self.asked


async def _allowed(request: Request, scope: str) -> Caller:
    assert scope in ("infer", "admin")
    if "Authorization" not in request.headers:
        raise AuthError("no key", hint="Send one.")
    if request.headers["Authorization"] == ("Bearer submit-nothing" if scope == "infer" else "Bearer k"):
        raise ForbiddenError("not with this key")
    return Caller("me", request_id="req_1")


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
    assert before.headers.get("retry-after") == {429: "3", 503: "2"}.get(status)
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


async def test_every_answer_names_its_request() -> None:
    for path, method in (("/v1/models", "GET"), ("/v1/completions", "POST")):
        assert (await _ask(_app([b"{}"]), method, path)).headers["x-request-id"] == "req_1"
    assert (await _ask(_app([sse({})]), json={**BODY, "stream": True})).headers["x-request-id"] == "req_1"
    for broken in (ZeroDivisionError(), EngineError("broken")):
        assert (await _ask(_app([broken]))).headers["x-request-id"] == "req_1"
    for options in ({"headers": {}}, {"path": "/v1/nothing"}):
        names = {(await _ask(_app([]), **options)).headers["x-request-id"] for _ in range(2)}
        assert len(names) == 2 and all(name.startswith("req_") for name in names)


async def test_what_is_accepted_without_effect_is_named() -> None:
    asked = {**BODY, "suffix": "x", "prompt_cache_key": "k", "user": "u", "stream_options": {"include_usage": True}}
    found = await _ask(_app([b"{}"]), json=asked)
    assert found.headers["llmos-ignored-params"] == "stream_options, suffix"
    for stream in (False, True):
        messages = [{"role": "user", "content": "x", "name": "n"}]
        chat = {"model": "m", "messages": messages, "verbosity": "low", "store": True, "metadata": {"a": "b"}}
        found = await _ask(_app([b"{}"]), path="/v1/chat/completions", json={**chat, "stream": stream})
        assert found.headers["llmos-ignored-params"] == "messages.name, metadata, store, verbosity"
    assert "llmos-ignored-params" not in (await _ask(_app([b"{}"]))).headers


async def test_vectors_have_two_forms_and_fewer_dimensions() -> None:
    async def vectors(**extra: Any) -> list[Any]:
        found = await _ask(_app([]), path="/v1/embeddings", json={"model": "m", "input": ["a", "b"], **extra})
        assert found.json()["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
        assert [one["index"] for one in found.json()["data"]] == [0, 1]
        return [one["embedding"] for one in found.json()["data"]]

    assert await vectors() == [pytest.approx([0.6, 0, 0.8])] * 2
    assert await vectors(dimensions=2) == [[1.0, 0.0]] * 2
    encoded = (await vectors(encoding_format="base64"))[0]
    assert np.frombuffer(base64.b64decode(encoded), "<f4").tolist() == pytest.approx([0.6, 0, 0.8])
    for extra, param in (({"dimensions": 4}, "dimensions"), ({"input": []}, "input"), ({"input": ["a", ""]}, "input")):
        found = await _ask(_app([]), path="/v1/embeddings", json={"model": "m", "input": "a", **extra})
        assert (found.status_code, found.json()["error"]["param"]) == (400, param)


async def test_tokens_have_addresses_with_and_without_the_version() -> None:
    for prefix in ("", "/v1"):
        found = await _ask(_app([]), path=f"{prefix}/tokenize", json={"model": "m", "prompt": "x"})
        assert found.json() == {"count": 2, "max_model_len": 64, "tokens": [1, 2], "token_strs": None}
        found = await _ask(_app([]), path=f"{prefix}/detokenize", json={"model": "m", "tokens": [1]})
        assert found.json() == {"prompt": "xy"}
        for body, param in (
            ({}, "prompt"),
            ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ):
            found = await _ask(_app([]), path=f"{prefix}/tokenize", json={"model": "m", **body})
            assert (found.status_code, found.json()["error"]["param"]) == (400, param)


async def test_only_an_admin_removes_a_model() -> None:
    backend = Scripted([])
    app = create_app(backend, _allowed)
    assert (await _ask(app, "DELETE", "/v1/models/m")).status_code == 403
    root = {"Authorization": "Bearer root"}
    found = await _ask(app, "DELETE", "/v1/models/org/other", headers=root)
    assert found.json() == {"id": "org/other", "object": "model", "deleted": True}
    assert backend.removed == ("org/other", "Bearer root")
    assert (await _ask(app, "DELETE", "/v1/models/none", headers=root)).status_code == 404


async def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        raise AssertionError("it was read")
        yield b""

    headers = {"Authorization": "Bearer k", "Content-Length": "1001"}
    found = await _ask(_app([], max_body_bytes=1000), json=None, content=endless(), headers=headers)
    assert found.status_code == 413


async def test_an_idempotency_key_stands_for_one_answer() -> None:
    backend = Counting([])
    app = create_app(backend, _allowed)
    keyed = {"Authorization": "Bearer k", "Idempotency-Key": "1"}
    first = await _ask(app, headers=keyed)
    again = await _ask(app, headers=keyed)
    assert first.content == again.content and backend.asked == 1
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    other = await _ask(app, headers=keyed, json={**BODY, "prompt": "y"})
    assert (other.status_code, other.json()["error"]["param"]) == (409, "Idempotency-Key")
    streamed = {**keyed, "Idempotency-Key": "2"}
    pair = [await _ask(app, headers=streamed, json={**BODY, "stream": True}) for _ in range(2)]
    assert pair[0].content == pair[1].content and backend.asked == 2
    assert pair[1].headers["content-type"].startswith("text/event-stream")
    wrong = await _ask(app, headers={**keyed, "Idempotency-Key": "x" * 256})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "Idempotency-Key")


async def test_a_request_that_fails_frees_its_idempotency_key() -> None:
    for stream in (False, True):
        backend = Scripted([sse({"a": 1}), EngineError("broken")] if stream else [EngineError("broken")])
        app = create_app(backend, _allowed)
        options = {"headers": {"Authorization": "Bearer k", "Idempotency-Key": "1"}, "json": {**BODY, "stream": stream}}
        await _ask(app, **options)
        backend.script = [sse({"b": 1}) + DONE] if stream else [b'{"b": 1}']
        assert '{"b"' in (await _ask(app, **options)).text and backend.script


async def test_while_a_request_is_answered_its_idempotency_key_is_taken() -> None:
    backend = Scripted([], stuck=True)
    options = {"json": {**BODY, "stream": True}, "headers": {"Authorization": "Bearer k", "Idempotency-Key": "1"}}
    with listening(create_app(backend, _allowed)) as url, httpx.Client(timeout=0.3) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{url}/v1/completions", **options)
        assert backend.closed.wait(5)
        backend.stuck, backend.script = False, [DONE]
        assert client.post(f"{url}/v1/completions", **options).text == DONE.decode()  # who left has freed it


def test_kept_answers_are_bounded_in_number_size_and_time() -> None:
    now = 0.0
    replays = Replays(lambda: now)
    for number in range(MAX_ANSWERS + 2):
        assert replays.begin("me", str(number), "/", b"") is None
        replays.keep("me", str(number), b"x")
    assert replays._answers == MAX_ANSWERS and replays.begin("me", "5", "/", b"") == b"x"
    assert replays.begin("other", "5", "/", b"") is None
    for number in range(40):
        replays.begin("me", f"large{number}", "/", b"")
        replays.keep("me", f"large{number}", b"x" * MAX_ANSWER_BYTES)
    assert replays._bytes <= MAX_BYTES
    replays.begin("me", "huge", "/", b"")
    replays.keep("me", "huge", b"x" * (MAX_ANSWER_BYTES + 1))
    assert replays.begin("me", "huge", "/", b"other") is None
    with pytest.raises(ConflictError, match="is being answered"):
        replays.begin("me", "huge", "/", b"other")
    now = KEEP_S + 1
    assert replays.begin("me", "large39", "/", b"") is None and not replays._answers and not replays._bytes


async def test_of_a_stream_no_more_is_kept_than_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "MAX_ANSWER_BYTES", 100)
    app = create_app(Scripted([b"data: %s\n\n" % (b"x" * 60), DONE, DONE, DONE, DONE]), _allowed)
    keyed = {"Authorization": "Bearer k", "Idempotency-Key": "1"}
    for _ in range(2):
        found = await _ask(app, headers=keyed, json={**BODY, "stream": True})
        assert found.text.endswith(DONE.decode() * 4) and REPLAYED not in found.headers  # and the key is free again


def test_an_api_key_makes_no_other_ones_answers_be_forgotten() -> None:
    replays = Replays(lambda: 0.0)
    for caller, key in (("quiet", "1"), ("quiet", "2"), *(("loud", str(n)) for n in range(MAX_ANSWERS + 5))):
        assert replays.begin(caller, key, "/", b"") is None
        replays.keep(caller, key, b"of " + caller.encode())
    assert replays.begin("quiet", "1", "/", b"") == b"of quiet" and replays.begin("loud", "1", "/", b"") is None
    for n in range(MAX_BYTES // MAX_ANSWER_BYTES + 2):
        replays.begin("large", str(n), "/", b"")
        replays.keep("large", str(n), b"x" * MAX_ANSWER_BYTES)
    assert replays.begin("large", "0", "/", b"") is None and replays._bytes <= MAX_BYTES
    assert replays.begin("quiet", "2", "/", b"") == b"of quiet" and replays.begin("loud", "99", "/", b"") == b"of loud"


def test_an_api_key_leaves_nothing_behind() -> None:
    now = 0.0
    replays = Replays(lambda: now)
    for n in range(100):
        assert replays.begin(f"key {n}", "1", "/", b"") is None
        if n % 2:
            replays.keep(f"key {n}", "1", b"x")
        else:
            replays.forget(f"key {n}", "1")
    assert len(replays._shelves) == 50
    now = KEEP_S + 1
    assert replays.begin("me", "1", "/", b"") is None and set(replays._shelves) == {"me"}


def test_a_key_stands_for_its_request_for_as_long_as_that_is_answered() -> None:
    now = 0.0
    replays = Replays(lambda: now)
    assert replays.begin("me", "slow", "/", b"one") is None
    for number in range(MAX_ANSWERS + 1):
        replays.begin("me", str(number), "/", b"")
        replays.keep("me", str(number), b"x")
    now = KEEP_S + 1
    for body in (b"one", b"two"):
        with pytest.raises(ConflictError):
            replays.begin("me", "slow", "/", body)
    replays.keep("me", "slow", b"the answer to one")
    assert replays.begin("me", "slow", "/", b"one") == b"the answer to one"
