"""The front door as an ASGI application: who answers a path, and OpenAI requests answered by replicas."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from functools import cache

from prometheus_client import Counter, Histogram
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmos.errors import LlmosError, UsageError
from llmos.front.fleet import Fleet
from llmos.front.holding import Holding
from llmos.front.metering import Asked, Metering
from llmos.front.turns import Question
from llmos.openai.caller import Caller
from llmos.openai.embeddings import EmbeddingRequest
from llmos.openai.replies import ModelCard, model_card
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.tokens import DetokenizeRequest, TokenizeRequest

Remove = Callable[[str, str | None], Awaitable[None]]
"""Removes a service for whoever sent this ``Authorization`` header, an admin."""

_REQUESTS = Counter("llmos_requests", "requests to the front door", ["part", "status"])
_SECONDS = Histogram("llmos_request_seconds", "time until the answer was complete", ["part"])


_encoded = cache(str.encode)  # of the names of a few headers


@cache
def _requests(part: str, status: int) -> Counter:
    """To look a label up costs as much as a request's routing."""
    return _REQUESTS.labels(part, str(status))


class ServiceBackend:
    """Answers OpenAI requests (``openai.server.OpenAIBackend``) with the replicas of the service they name."""

    def __init__(self, fleet: Fleet, replicas: Holding, metering: Metering, remove: Remove) -> None:
        self._fleet, self._replicas, self._metering, self._remove = fleet, replicas, metering, remove

    async def models(self) -> Sequence[ModelCard]:
        """The services, also those that are not ready. While the control module is away, those that there were."""
        services = self._fleet.services.items()
        names = {one: route.created_at for name, route in services for one in (name, *route.aliases)}
        return [model_card(name, created) for name, created in sorted(names.items())]

    def answer(
        self, request: CompletionRequest | ChatRequest, caller: Caller, raw: bytes = b""
    ) -> AsyncGenerator[bytes, None]:
        """The replica's bytes, as they come. Closing this ends the request there. ``raw`` is what ``request`` was read
        from, if that is at hand."""
        return self._metered(*self._asked(request, caller, raw))

    async def whole(self, request: CompletionRequest | ChatRequest, caller: Caller, raw: bytes = b"") -> bytes:
        """All of the replica's answer to a request that is no stream. Being cancelled, it ends the request there."""
        asked, question = self._asked(request, caller, raw)
        if asked.service in self._fleet.services:
            return await self._metering.whole(asked, self._replicas, question)
        return b"".join([piece async for piece in self._metered(asked, question)])

    def _asked(self, request: CompletionRequest | ChatRequest, caller: Caller, raw: bytes) -> tuple[Asked, Question]:
        path = "/v1/chat/completions" if isinstance(request, ChatRequest) else "/v1/completions"
        service = self._fleet.named(request.model)
        body = raw if service == request.model and _passable(raw) else _body(request, service)
        answers = request.n or 1
        if isinstance(request, CompletionRequest):
            answers *= len(request.prompts)
        asked = Asked(service, caller, len(body), bool(request.stream), request.limit, answers)
        return asked, Question(service, path, body, caller, asked.streamed, request, asked.answered_by)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> bytes:
        """The replica's vectors. Being cancelled, it ends the request there."""
        service = self._fleet.named(request.model)
        body = _body(request, service)
        asked = Asked(service, caller, len(body), streamed=False, bound=0)
        question = Question(service, "/v1/embeddings", body, caller, streamed=False, begun=asked.answered_by)
        return b"".join([piece async for piece in self._metered(asked, question)])

    async def tokenize(self, request: TokenizeRequest, caller: Caller) -> bytes:
        """The replica's tokens of a text."""
        service = self._fleet.named(request.model)
        return await self._told(service, "/v1/tokenize", _body(request, service), caller)

    async def detokenize(self, request: DetokenizeRequest, caller: Caller) -> bytes:
        """The replica's text of tokens."""
        service = self._fleet.named(request.model)
        return await self._told(service, "/v1/detokenize", _body(request, service), caller)

    async def remove(self, model: str, authorization: str | None) -> None:
        """Have the service be no more."""
        await self._remove(model, authorization)

    def _metered(self, asked: Asked, question: Question) -> AsyncGenerator[bytes, None]:
        if asked.service not in self._fleet.services:
            return self._unheard(asked, question)
        return self._metering.metered(asked, self._replicas.pieces(question))

    async def _unheard(self, asked: Asked, question: Question) -> AsyncGenerator[bytes, None]:
        """Of a service that may have been made just now. One that does not exist has no limits and no metrics."""
        with suppress(LlmosError, TimeoutError):  # without news, whoever looks for a replica says so
            await self._fleet.refresh()
        known, pieces = asked.service in self._fleet.services, self._replicas.pieces(question)
        async with aclosing(self._metering.metered(asked, pieces) if known else pieces) as answer:
            async for piece in answer:
                yield piece

    async def _told(self, service: str, path: str, body: bytes, caller: Caller) -> bytes:
        """The JSON that a replica answers to ``body`` (JSON) at ``path``. Raises what the replica raises."""
        return await self._replicas.whole(Question(service, path, body, caller, streamed=False))


def _passable(raw: bytes) -> bool:
    """Whether the body of a valid request may go on as it came: it is UTF-8, and no half of a surrogate pair can be in
    it, neither escaped nor as bytes. Otherwise it has to be looked at."""
    return raw[:1] == b"{" and b"\\u" not in raw and b"\xed" not in raw and b"\0" not in raw


def _body(request: BaseModel, service: str) -> bytes:
    """What a replica is sent: the request as it came, the service under its own name. Raises UsageError."""
    try:
        return request.model_copy(update={"model": service}).model_dump_json(exclude_unset=True).encode()
    except PydanticSerializationError as error:
        what = f"the body cannot be passed on: {str(error)[:200]}"
        raise UsageError(what, hint="Send Unicode text (no half of a surrogate pair) and no deep nesting.") from error


class FrontDoor:
    """Chooses by path, and counts: ``/v1`` goes to ``openai``, three addresses to ``health``, others to ``control``.
    Answers say what ``metering`` has left for whoever asks."""

    def __init__(self, openai: ASGIApp, health: ASGIApp, control: ASGIApp, metering: Metering) -> None:
        self._metering = metering
        self._parts = {"openai": openai, "health": health, "control": control}
        self._seconds = {part: _SECONDS.labels(part) for part in self._parts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._parts["control"](scope, receive, send)
        part = _part(scope["path"])
        status, began = 500, time.monotonic()
        self._metering.arrives()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                if left := self._metering.headers():
                    told = [(_encoded(name), value.encode()) for name, value in left.items()]
                    message["headers"] = [*message.get("headers", ()), *told]
            await send(message)

        try:
            await self._parts[part](scope, receive, counted)
        finally:
            _requests(part, status).inc()
            self._seconds[part].observe(time.monotonic() - began)


def _part(path: str) -> str:
    if path in ("/v1", "/tokenize", "/detokenize") or path.startswith("/v1/"):
        return "openai"
    return "health" if path in ("/healthz", "/readyz", "/metrics") else "control"
