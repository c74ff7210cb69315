"""The hot routes answer as FastAPI's do, and pass on what is not valid."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import Message, Receive, Scope, Send

from llmos.errors import AuthError, CapacityError
from llmos.openai.caller import Caller
from llmos.openai.http import GRACE_S, WhileConnected
from llmos.openai.server import create_app
from llmos.openai.sse import DONE, sse
from tests.unit.openai.test_server import Script, Scripted

PATH, JSON = "/v1/completions", "application/json"
GOOD = {"model": "m", "prompt": "x"}
VALID = (GOOD, {**GOOD, "stream": True}, {**GOOD, "suffix": "é", "temperature": 1})
WRONG = (
    {},
    {**GOOD, "user": "\ud800"},
    {**GOOD, "temprature": 1},
    {**GOOD, "n": "1"},
    {**GOOD, "prompt": []},
    [],
    None,
    "x",
    7,
)
RAW = (b"", b"{", b"\xff", b'{"model": "m"', b"[" * 100_000, b'{"model": "m", "prompt": "x", "temperature": NaN}')
LARGE = 2**18
SCRIPTS: tuple[Script, ...] = (
    *([sse({"n": 1}), DONE], [b"{}"], [CapacityError("full", retry_after_s=3)], [sse({"n": 1}), ValueError("secret")]),
    [ValueError("secret")],
)


async def _authorize(request: Request, scope: str) -> Caller:
    assert scope == "infer"
    if request.headers.get("Authorization") != "Bearer k":
        raise AuthError("no key", hint="Send one.")
    return Caller("me", request_id="req_1")


def _app(script: Script) -> FastAPI:
    return create_app(Scripted(script), _authorize, max_body_bytes=LARGE)


async def _ask(app: Any, body: bytes, kind: str | None = JSON, key: str = "k") -> tuple[int, bytes, dict[str, str]]:
    headers = {"Authorization": f"Bearer {key}", **({"Content-Type": kind} if kind else {})}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        found = await client.post(PATH, content=body, headers=headers)
        names = {name: value for name, value in found.headers.items() if name != "x-request-id"}
        assert len(found.headers.get_list("x-request-id")) == 1
        return found.status_code, found.content, names


async def _both(script: Script, *asked: Any) -> int:
    """The status, which is that of either way, as all of the answer is."""
    app = _app(script)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await FastAPI.__call__(app, scope, receive, send)

    hot, other = await _ask(app, *asked), await _ask(slow, *asked)
    assert hot == other, asked
    return hot[0]


async def test_either_way_gives_the_same_answers() -> None:
    statuses = [await _both(script, json.dumps(body).encode()) for script in SCRIPTS for body in VALID]
    assert set(statuses) == {200, 429, 500}
    assert {await _both(SCRIPTS[1], json.dumps(body).encode()) for body in WRONG} == {400}
    assert {await _both(SCRIPTS[1], body) for body in RAW} == {400}
    assert await _both(SCRIPTS[1], b" " * (LARGE + 1)) == 413
    assert await _both(SCRIPTS[1], b" " * (LARGE + 1), JSON, "x") == 401  # the key comes first
    good = json.dumps(GOOD).encode()
    for kind in (JSON, "application/json; charset=utf-8", "APPLICATION/JSON", "text/plain", "application/x+json", None):
        assert await _both(SCRIPTS[1], good, kind) in (200, 400)


async def test_valid_requests_go_no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object) -> None:
        raise AssertionError("FastAPI was asked")

    app = _app(SCRIPTS[0])
    monkeypatch.setattr(FastAPI, "__call__", refused)
    for body in VALID:
        assert (await _ask(app, json.dumps(body).encode()))[0] == 200


async def _gone_after(seconds: float) -> Message:
    await asyncio.sleep(seconds)
    return {"type": "http.disconnect"}


async def test_who_leaves_ends_what_is_waited_for_and_nothing_else() -> None:
    with WhileConnected(lambda: _gone_after(0.0)) as none:
        assert none is None
        await asyncio.sleep(GRACE_S / 5)  # over before anybody looks
    present = WhileConnected(lambda: _gone_after(0.0))
    with present:
        await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None and present.left and task.cancelling() == 0
    await asyncio.sleep(0)  # it goes on


async def test_who_is_cancelled_by_others_is_cancelled() -> None:
    async def waits() -> None:
        with WhileConnected(lambda: _gone_after(60.0)):
            await asyncio.Event().wait()

    task = asyncio.create_task(waits())
    await asyncio.sleep(2 * GRACE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == {asyncio.current_task()}  # nobody looks any more
