"""HTTP around the routes of ``/v1``: names of requests, bounded bodies, who leaves, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmos.errors import LlmosError
from llmos.openai import errors
from llmos.openai.caller import Caller, new_request_id
from llmos.openai.sse import MEDIA_TYPE, sse
from llmos.openai.wire import Wire

REQUEST_ID = "x-request-id"
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; logs do (nginx's convention)

GRACE_S = 0.05

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
    if "llmos" not in scope:
        scope["llmos"] = {"request_id": new_request_id()}
    known = scope["llmos"]  # what copies of the scope share

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            name = str(known["request_id"]).encode()
            message["headers"] = [*message.get("headers", ()), (REQUEST_ID.encode(), name)]
        await send(message)

    return sent


def enter(request: Request, caller: Caller) -> None:
    """``caller`` is who asks; what is answered has their name of the request."""
    request.scope["llmos"]["caller"] = caller
    request.scope["llmos"]["request_id"] = caller.request_id


def caller_of(request: Request) -> Caller:
    """Who asks, in a route behind :func:`enter`."""
    caller: Caller = request.scope["llmos"]["caller"]
    return caller


class WhileConnected:
    """Within it, what the current task waits for is cancelled when the client leaves; then :attr:`left` is true, and
    the task goes on after the block.

    That is looked for only after GRACE_S: most answers are there before, and cost less than a task that looks.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive, self.left = receive, False
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(GRACE_S, self._watch)

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> bool:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.remove_done_callback(self._leave)
            self._watcher.cancel()
        # whoever else cancels the task means it
        return self.left and self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError)

    def _watch(self) -> None:
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


def limited(request: Request, max_bytes: int) -> Request:
    """``request``, of whose body no more than ``max_bytes`` are read; one that says it is longer is not read at all."""
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > max_bytes:
        raise _too_large(max_bytes)
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > max_bytes:
            raise _too_large(max_bytes)
        return message

    return Request(request.scope, receive)


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
    name: Any = request.scope.get("llmos", {}).get("request_id")  # this handler is outside of the middleware
    return JSONResponse(_BUG, 500, {REQUEST_ID: name} if name else None)
