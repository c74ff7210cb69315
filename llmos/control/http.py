"""What every request and answer of the control API has in common: the key, how errors look, how large it may be."""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import Header, Path
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmos.errors import CapacityError, LlmosError, UsageError

PREFIX = "/api/v1"
Authorization = Annotated[str | None, Header(include_in_schema=False)]
Name = Annotated[str, Path(max_length=200)]
MAX_BODY_BYTES = 1 << 20
"""The largest spec is a few thousand characters; nothing else that is sent here is large."""


class Body(BaseModel):
    """What a request may hold: nothing that is not known, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


def error_response(error: LlmosError, status: int | None = None) -> JSONResponse:
    """``{"error": {"code", "message", "hint", "param"}}`` with the error's own status unless another is given."""
    headers = {}
    if isinstance(error, CapacityError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"code": error.code, "message": error.message, "hint": error.hint, "param": error.param}
    return JSONResponse({"error": body}, status or error.http_status, headers)


class BodyLimit:
    """ASGI middleware: answers 413 to bodies of more than ``limit`` bytes, read no further than that."""

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = await self._read(scope, receive)
        if body is None:
            error = UsageError(f"the request is too large: expected at most {self._limit} bytes")
            return await error_response(error, 413)(scope, receive, send)
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, None if it is too large."""
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told) > self._limit:
            return None
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limit:
                return None
        return body
