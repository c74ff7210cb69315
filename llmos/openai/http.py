"""HTTP around the routes of ``/v1``: names of requests, bounded bodies, who leaves, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmos.errors import LlmosError
from llmos.openai import errors
from llmos.openai.caller import Caller, new_request_id
from llmos.openai.sse import MEDIA_TYPE, sse
from llmos.openai.wire import Wire

REQUEST_ID, _REQUEST_ID = "x-request-id", b"x-request-id"
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; logs do (nginx's convention)

GRACE_S = 0.05
_JSON = b"content-type", b"application/json"

Result = TypeVar("Result")
_log = logging.getLogger(__name__)
_BUG = errors.body("The server failed to answer; its log says why.", errors.SERVER, code="internal_error")


class RequestIds:
    """ASGI middleware: every answer names its request in ``x-request-id``, as the caller does once there is one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        await self._app(scope, receive, named(scope, send))


def named(scope: Scope, send: Send) -> Send:
    """``send`` of a request that has a name from now on, if it had none, which its answer says."""
    known = scope.setdefault("llmos", {})  # what copies of the scope share

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (_REQUEST_ID, _name(known).encode())]
        await send(message)

    return sent


def _name(known: dict[str, Any]) -> str:
    """What the request is called, from now on if it was nothing before."""
    name: str = known.get("request_id") or known.setdefault("request_id", new_request_id())
    return name


def enter(request: Request, caller: Caller) -> None:
    """``caller`` is who asks; what is answered has their name of the request."""
    request.scope["llmos"]["caller"] = caller
    request.scope["llmos"]["request_id"] = caller.request_id


def caller_of(request: Request) -> Caller:
    """Who asks, in a route behind :func:`enter`."""
    caller: Caller = request.scope["llmos"]["caller"]
    return caller


class _Rounds:
    """Has an event loop look after the clients of requests that are there for longer than GRACE_S, in rounds: a timer
    for each request would cost more than most of what is done for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._new, self._old = set[WhileConnected](), set[WhileConnected]()
        self._going = False

    def enter(self, one: WhileConnected) -> None:
        self._new.add(one)
        if not self._going:
            self._going = True
            self.loop.call_later(GRACE_S, self._round)

    def leave(self, one: WhileConnected) -> None:
        self._new.discard(one)
        self._old.discard(one)

    def _round(self) -> None:
        for one in self._old:
            one.watch()
        self._old, self._new = self._new, set()
        self._going = bool(self._old)
        if self._going:
            self.loop.call_later(GRACE_S, self._round)


_OF_THREAD = threading.local()


def _rounds() -> _Rounds:
    """Those of the running loop. A thread has one at a time."""
    loop, found = asyncio.get_running_loop(), getattr(_OF_THREAD, "rounds", None)
    if found is None or found.loop is not loop:
        found = _OF_THREAD.rounds = _Rounds(loop)
    rounds: _Rounds = found
    return rounds


class WhileConnected:
    """Within it, what the current task waits for is cancelled when the client leaves; then :attr:`left` is true, and
    the task goes on after the block.

    That is looked for only after GRACE_S to twice as long: most answers are there before, and cost less than a task
    that looks.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive, self.left = receive, False
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._rounds = task, _rounds()
        self._rounds.enter(self)

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> bool:
        self._rounds.leave(self)
        if self._watcher is not None:
            self._watcher.remove_done_callback(self._leave)
            self._watcher.cancel()
        # whoever else cancels the task means it
        return self.left and self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError)

    def watch(self) -> None:
        """Begin to look."""
        self._watcher = asyncio.ensure_future(_disconnected(self._receive))
        self._watcher.add_done_callback(self._leave)

    def _leave(self, watcher: asyncio.Task[None]) -> None:
        self.left = not watcher.cancelled() and watcher.exception() is None
        if self.left:
            self._task.cancel()


async def unless_disconnected(request: Request, work: Awaitable[Result]) -> Result | None:
    """The result of ``work``, or None when the client leaves before: then ``work`` is cancelled."""
    with WhileConnected(request.receive):
        return await work
    return None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def error_events(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """``pieces`` of a stream that has begun: an error becomes its last event."""
    try:
        async for piece in pieces:
            yield piece
    except LlmosError as error:
        yield sse(errors.describe(error))
    except Exception:
        _log.exception("a stream failed")
        yield sse(_BUG)
    finally:
        await pieces.aclose()


class EventStream(Response):
    """Sends ``events`` as they come, and closes their source when the client leaves, in whatever moment."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str], close: Callable[[], Awaitable[None]]
    ) -> None:
        kept = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers}
        super().__init__(None, headers=kept, media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with WhileConnected(receive):
                async for piece in self._events:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        finally:
            await self._events.aclose()
            await self._close()  # events that were never asked for have closed nothing


class Whole(Response):
    """An answer (JSON) that is there, written without what a general response looks at."""

    def __init__(self, answer: bytes, headers: Mapping[str, str]) -> None:
        self.status_code, self.body, self.background = 200, answer, None
        more = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self.raw_headers = [*more, (b"content-length", str(len(answer)).encode()), _JSON]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})

    async def say(self, request: Request, send: Send) -> None:
        """As what :func:`named` returns does, without it: it would be between for every message."""
        self.raw_headers.append((_REQUEST_ID, _name(request.scope["llmos"]).encode()))
        await self(request.scope, request.receive, send)


async def read_body(receive: Receive, told: bytes, max_bytes: int) -> bytes:
    """All of it; ``told`` is its length as the header says. Raises HTTPException for one that is longer than
    ``max_bytes``, without reading one that says so; ClientDisconnect."""
    _check_length(told.decode("latin-1"), max_bytes)
    pieces, size, more = list[bytes](), 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        size, more = size + len(pieces[-1]), message.get("more_body", False)
        if size > max_bytes:
            raise _too_large(max_bytes)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def limited(request: Request, max_bytes: int) -> Request:
    """``request``, of whose body no more than ``max_bytes`` are read; one that says it is longer is not read at all."""
    _check_length(request.headers.get("content-length", ""), max_bytes)
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > max_bytes:
            raise _too_large(max_bytes)
        return message

    return Request(request.scope, receive)


def _check_length(told: str, max_bytes: int) -> None:
    if told.isdigit() and int(told) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body is too large: expected at most {max_bytes} bytes")


def answer_errors(app: FastAPI, bodies: Mapping[str, type[Wire]]) -> None:
    """Errors of ``app`` have OpenAI's shape. ``bodies`` are what its routes take, by the end of their paths."""

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        path = request.url.path
        fields = next((body.model_fields for end, body in bodies.items() if path.endswith(end)), {})
        return await _on_llmos_error(request, errors.invalid(error, fields))

    app.add_exception_handler(LlmosError, _on_llmos_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)


async def _on_llmos_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, LlmosError)
    return JSONResponse(errors.describe(error), error.http_status, errors.headers(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path[:200], request.method
    known = {404: f"There is no {path}.", 405: f"{path} does not take {method}."}
    message = known.get(error.status_code, str(error.detail))
    return JSONResponse(errors.body(message, errors.INVALID_REQUEST), error.status_code, error.headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    known = request.scope.get("llmos")  # this handler is outside of the middleware
    return JSONResponse(_BUG, 500, None if known is None else {REQUEST_ID: _name(known)})
