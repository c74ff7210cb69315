"""The two routes that most requests are for, without what FastAPI does for each: that costs more than the rest.

They know the key, the body and its schema, and nothing else: what is not a valid request goes FastAPI's way, and gets
its answers. FastAPI has the routes too; it documents them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from llmos.errors import LlmosError
from llmos.openai.caller import Caller
from llmos.openai.http import Whole, enter, named, read_body
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.wire import Wire

KINDS: dict[str, type[ChatRequest] | type[CompletionRequest]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
}

_JSON = b"application/json"
_DECODER = json.JSONDecoder()

Authorize = Callable[[Request, str], Awaitable[Caller]]
Answer = Callable[[Request, Any, bytes], Awaitable[Response]]
Told = Callable[[Request, Exception], Awaitable[Response]]


class HotApp(FastAPI):
    """An application that answers POSTs to the paths of KINDS itself, once :meth:`heat` was called."""

    def heat(self, authorize: Authorize, answer: Answer, max_body_bytes: int) -> None:
        """``answer`` answers a request that is valid, of at most ``max_body_bytes``, with its body as it came."""
        self._authorize, self._answer, self._max_body_bytes = authorize, answer, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and (kind := KINDS.get(scope["path"])):
            return await self._hot(kind, scope, receive, send)
        await super().__call__(scope, receive, send)

    async def _hot(self, kind: type[Wire], scope: Scope, receive: Receive, send: Send) -> None:
        saying, request = named(scope, send), Request(scope, receive)
        try:
            enter(request, await self._authorize(request, "infer"))
            known = dict(reversed(scope["headers"]))  # of one that comes twice, the first counts
            raw = await read_body(receive, known.get(b"content-length", b""), self._max_body_bytes)
            body = _parsed(known.get(b"content-type", b""), raw, kind)
            if body is None:
                return await super().__call__(scope, _again(raw, receive), send)
            response = await self._answer(request, body, raw)
        except ClientDisconnect:
            return None
        except (LlmosError, HTTPException) as error:
            response = await self._told(request, error)
        except Exception as error:
            await (await self._told(request, error))(scope, receive, send)
            raise  # whoever serves writes it to the log
        if isinstance(response, Whole):
            return await response.say(request, send)
        await response(scope, receive, saying)

    async def _told(self, request: Request, error: Exception) -> Response:
        """What the application answers to ``error``, the same on either way."""
        handlers: dict[Any, Any] = self.exception_handlers
        handler: Told = next(handlers[one] for one in type(error).__mro__ if one in handlers)
        return await handler(request, error)


def _parsed(media_type: bytes, raw: bytes, kind: type[Wire]) -> Wire | None:
    """The body, if it is valid, as FastAPI reads it."""
    if media_type != _JSON and media_type.partition(b";")[0].strip().lower() != _JSON:
        return None
    try:
        return kind.model_validate(_loads(raw) if raw[:1] == b"{" and b"\0" not in raw else json.loads(raw))
    except (ValueError, RecursionError):
        return None


def _loads(raw: bytes) -> Any:
    """As ``json.loads``, which would look first whether it is not UTF-8."""
    return _DECODER.decode(raw.decode("utf-8", "surrogatepass"))


def _again(raw: bytes, receive: Receive) -> Receive:
    """``receive`` of a request whose body was read: ``raw``."""
    messages: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message
