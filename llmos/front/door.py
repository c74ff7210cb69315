"""The front door as an ASGI application: who answers a path, and OpenAI requests answered by replicas."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmos.front.fleet import Fleet
from llmos.front.relay import Question, Relay
from llmos.openai.caller import Caller
from llmos.openai.embeddings import EmbeddingRequest
from llmos.openai.replies import ModelCard, model_card
from llmos.openai.schema import ChatRequest, CompletionRequest

_REQUESTS = Counter("llmos_requests", "requests to the front door", ["part", "status"])
_SECONDS = Histogram("llmos_request_seconds", "time until the answer was complete", ["part"])


class ServiceBackend:
    """Answers OpenAI requests (``openai.server.OpenAIBackend``) with the replicas of the service they name."""

    def __init__(self, fleet: Fleet, relay: Relay) -> None:
        self._fleet, self._relay = fleet, relay

    async def models(self) -> Sequence[ModelCard]:
        """The services, also those that are not ready. While the control module is away, those that there were."""
        return [model_card(name, created) for name, created in sorted(self._fleet.services.items())]

    def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        """The replica's bytes, as they come. Closing this ends the request there."""
        path = "/v1/chat/completions" if isinstance(request, ChatRequest) else "/v1/completions"
        body = request.model_dump_json(exclude_unset=True).encode()
        return self._relay.pieces(Question(request.model, path, body, caller, bool(request.stream)))

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> bytes:
        """The replica's vectors. Being cancelled, it ends the request there."""
        body = request.model_dump_json(exclude_unset=True).encode()
        return await self.whole(request.model, "/v1/embeddings", body, caller)

    async def whole(self, service: str, path: str, body: bytes, caller: Caller) -> bytes:
        """The JSON that a replica answers to ``body`` (JSON) at ``path``. Raises what the replica raises."""
        pieces = self._relay.pieces(Question(service, path, body, caller, streamed=False))
        return b"".join([piece async for piece in pieces])


class FrontDoor:
    """Chooses by path, and counts: ``/v1`` goes to ``openai``, three addresses to ``health``, others to ``control``."""

    def __init__(self, openai: ASGIApp, health: ASGIApp, control: ASGIApp) -> None:
        self._parts = {"openai": openai, "health": health, "control": control}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._parts["control"](scope, receive, send)
        part = _part(scope["path"])
        status, began = 500, time.monotonic()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._parts[part](scope, receive, counted)
        finally:
            _REQUESTS.labels(part, str(status)).inc()
            _SECONDS.labels(part).observe(time.monotonic() - began)


def _part(path: str) -> str:
    if path == "/v1" or path.startswith("/v1/"):
        return "openai"
    return "health" if path in ("/healthz", "/readyz", "/metrics") else "control"
