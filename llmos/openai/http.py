"""HTTP around the routes of ``/v1``: names of requests, bounded bodies, who leaves, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmos.errors import LlmosError
from llmos.openai import errors
from llmos.openai.caller import Caller, new_request_id
from llmos.openai.sse import MEDIA_TYPE, sse
from llmos.openai.wire import Wire

REQUEST_ID = "x-request-id"
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; logs do (nginx's convention)

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
        scope["llmos"] = {"request_id": new_request_id()}  # what copies of the scope share

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                name = str(scope["llmos"]["request_id"]).encode()
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID.encode(), name)]
            await send(message)

        await self._app(scope, receive, named)


def enter(request: Request, caller: Caller) -> None:
    """``caller`` is who asks; what is answered has their name of the request."""
    request.scope["llmos"]["caller"] = caller
    request.scope["llmos"]["request_id"] = caller.request_id


def caller_of(request: Request) -> Caller:
    """Who asks, in a route behind :func:`enter`."""
    caller: Caller = request.scope["llmos"]["caller"]
    return caller


async def unless_disconnected(request: Request, work: Awaitable[Result]) -> Result | None:
    """The result of ``work``, or None when the client leaves before: then ``work`` is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.wait((task, gone))


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


class EventStream(StreamingResponse):
    """Closes its source when the client leaves, in whatever moment."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str], close: Callable[[], Awaitable[None]]
    ) -> None:
        kept = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers}
        super().__init__(events, media_type=MEDIA_TYPE, headers=kept)
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
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
