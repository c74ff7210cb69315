"""The front door: ``/v1/*`` passed on to replicas, ``/api/v1/*`` to the control module, and how both are doing."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.handle_port import keep_on_loopback
from llmos.control.api import create_api
from llmos.control.http import error_response
from llmos.control.prometheus import exposition
from llmos.control.ray.proxy import ControlProxy
from llmos.errors import ClusterError, EngineError, ForbiddenError, LlmosError
from llmos.openai.caller import Caller
from llmos.openai.relay import unpack
from llmos.openai.replies import ModelCard, model_card
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.server import create_app

SERVED_FRESH_S = 1.0
MAX_CONCURRENT = 1000

_REQUESTS = Counter("llmos_requests", "requests to the front door", ["part", "status"])
_SECONDS = Histogram("llmos_request_seconds", "time until the answer was complete", ["part"])


class ServiceBackend:
    """Answers OpenAI requests (``openai.server.OpenAIBackend``) with the replicas of the service they name."""

    def __init__(self, control: ControlProxy) -> None:
        self._control = control
        self._served: tuple[float, list[ModelCard]] = (float("-inf"), [])

    async def models(self) -> Sequence[ModelCard]:
        """The services that can answer. While the control module is away, those that could before."""
        asked_at, cards = self._served
        if time.monotonic() - asked_at < SERVED_FRESH_S:
            return cards
        try:
            services = await self._control.served()
        except ClusterError:
            if cards:
                return cards
            raise
        cards = [model_card(one["name"], int(one.get("created_at") or 0)) for one in services if one["ready"]]
        self._served = time.monotonic(), cards
        return cards

    async def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        """The replica's bytes, as they come. Closing this cancels the request there."""
        handle: Any = serve.get_app_handle(f"llmos-service-{request.model}").options(stream=True)
        items = handle.answer.remote(request, caller)
        try:
            async for piece in unpack(items):
                yield piece
        except LlmosError:
            raise
        except Exception as error:
            raise EngineError(
                f"the replica of `{request.model}` ended while it answered", hint="try again; Serve restarts it"
            ) from error
        finally:
            items.cancel()


class FrontDoor:
    """An ASGI application that chooses by path, and counts."""

    def __init__(self) -> None:
        control = ControlProxy()
        backend = ServiceBackend(control)

        async def authorize(request: Request, scope: str) -> Caller:
            key = await control.authorize(request.headers.get("Authorization"), scope)
            return Caller(key["id"], key["tenant"])

        self._openai = create_app(backend, authorize)
        self._health = _health(control)
        self._api = create_api(control)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._api(scope, receive, send)
        part, app = self._route(scope["path"])
        status, began = 500, time.monotonic()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(str(message["status"]))
            await send(message)

        try:
            await app(scope, receive, counted)
        finally:
            _REQUESTS.labels(part, str(status)).inc()
            _SECONDS.labels(part).observe(time.monotonic() - began)

    def _route(self, path: str) -> tuple[str, ASGIApp]:
        if path == "/v1" or path.startswith("/v1/"):
            return "openai", self._openai
        if path in ("/healthz", "/readyz", "/metrics"):
            return "health", self._health
        return "control", self._api


def _health(control: ControlProxy) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def healthz() -> Response:
        """Whether the front door itself answers. The one route without a key."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz(request: Request) -> Response:
        """Whether the control module answers, too."""
        await control.authorize(request.headers.get("Authorization"), "infer")
        await control.served()
        return JSONResponse({"ready": True})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """How the front door does and, for a key that may ask for jobs, how training does."""
        authorization = request.headers.get("Authorization")
        await control.authorize(authorization, "infer")
        text = generate_latest()
        # without the control module, and for other keys, the front door's own are what there is to tell
        with suppress(ForbiddenError, ClusterError):
            await control.authorize(authorization, "submit")
            text += exposition(await control.training())
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(LlmosError)
    async def told(_request: Request, error: LlmosError) -> Response:
        return error_response(error)

    return app


def _front_door() -> ASGIApp:
    """Serve calls this in the replica: the application itself holds locks and cannot travel."""
    keep_on_loopback()
    return FrontDoor()


@serve.deployment(
    name="gateway",
    num_replicas=1,
    max_ongoing_requests=MAX_CONCURRENT,
    ray_actor_options={"num_cpus": 0},
    graceful_shutdown_timeout_s=2,
)
@serve.ingress(_front_door)
class Gateway:
    """The front door as a Serve deployment."""


def build() -> serve.Application:
    """The gateway's application."""
    deployment: Any = Gateway
    return cast(serve.Application, deployment.bind())
