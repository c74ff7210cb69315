"""Heads of requests that are too large are refused before anybody asks who sends them."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator

import pytest
from starlette.types import Receive, Scope, Send

from llmos.front.listening import Server, listen, spare_garbage
from llmos.front.protocol import MAX_HEAD_BYTES, MAX_HEADERS

SMALL = b"POST / HTTP/1.1\r\nhost: x\r\n"


class Counting:
    """Answers with the length of the body. Says how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        body = str(size).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def served() -> AsyncIterator[tuple[Counting, int]]:
    app, listener = Counting(), listen("127.0.0.1")
    server = Server(app, listener)
    server.start()
    yield app, listener.getsockname()[1]
    await asyncio.to_thread(server.end)


async def ask(port: int, *pieces: bytes) -> bytes:
    """What comes back until the connection is closed, or nothing has come for a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.002)
        while data := await asyncio.wait_for(reader.read(2**16), 0.3):
            answer += data
    except (TimeoutError, ConnectionError):
        answer += b""  # what has come so far
    writer.transport.abort()
    return answer


@pytest.mark.parametrize(
    "pieces",
    [
        [SMALL + b"x: 1\r\n" * MAX_HEADERS + b"\r\n"],
        [SMALL + b"x: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n"],
        [SMALL + b"x: ", *[b"a" * 9_000] * 8],  # it never ends
        [b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nhost: x\r\n\r\n"],
        [b"GET /", *[b"a" * 9_000] * 8],
    ],
)
async def test_a_large_head_is_refused_and_nobody_is_asked(served: tuple[Counting, int], pieces: list[bytes]) -> None:
    app, port = served
    answer = await ask(port, *pieces)
    assert answer.startswith(b"HTTP/1.1 431 ") and b'"code": "headers_too_large"' in answer
    assert app.asked == 0
    assert (await ask(port, SMALL + b"content-length: 2\r\n\r\nhi")).endswith(b"\r\n\r\n2")


async def test_what_surrounds_a_body_is_bounded_too(served: tuple[Counting, int]) -> None:
    app, port = served
    chunked = SMALL + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"
    assert (await ask(port, chunked + b"\r\n")).endswith(b"\r\n\r\n2")
    for trailers in ([b"x: 1\r\n" * MAX_HEADERS], [b"x: ", *[b"a" * 9_000] * 12]):
        assert b"200 OK" not in await ask(port, chunked, *trailers)
    assert app.asked == 3


async def test_bodies_are_as_large_as_before(served: tuple[Counting, int]) -> None:
    _, port = served
    size = 2**20
    whole = SMALL + b"x: " + b"a" * 30_000 + b"\r\ncontent-length: %d\r\n\r\n" % size + b"b" * size
    assert (await ask(port, whole)).endswith(b"\r\n\r\n%d" % size)
    bytewise = SMALL + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
    assert (await ask(port, bytewise)).endswith(b"\r\n\r\n50000")
    twice = SMALL + b"content-length: 2\r\n\r\nhi"
    assert (await ask(port, twice + twice)).count(b"200 OK") == 2


async def test_a_process_that_serves_does_not_look_again_at_what_was_there() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    try:
        spare_garbage()
        assert gc.get_freeze_count() > before[1] and gc.get_threshold()[0] > before[0][0]
        later = Counting()
        later.itself = later  # type: ignore[attr-defined]
        gone = weakref.ref(later)
        del later
        gc.collect()
        assert gone() is None  # what has come since goes as before
    finally:
        gc.unfreeze()
        gc.set_threshold(*before[0])
