"""The routes of ``/v1`` over whatever answers them: an engine in this process, or replicas elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Body, FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from llmos.errors import LlmosError
from llmos.openai import errors
from llmos.openai.caller import Caller
from llmos.openai.embeddings import EmbeddingRequest
from llmos.openai.replies import ModelCard, ModelList
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.sse import MEDIA_TYPE, sse

MAX_BODY_BYTES = 4 * 2**20
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; logs do (nginx's convention)

Authorize = Callable[[Request, str], Awaitable[Caller]]
"""``await authorize(request, scope)`` says who asks. Raises AuthError or ForbiddenError."""

_log = logging.getLogger(__name__)


class OpenAIBackend(Protocol):
    """Answers requests with bytes that are ready to send, so that whoever passes them on does nothing per token."""

    async def models(self) -> Sequence[ModelCard]:
        """What is served now."""
        ...

    def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        """For ``stream``, server-sent events with the closing ``[DONE]``, in pieces; else one piece of JSON.

        Callers share what there is, and nobody finds out about another's requests.
        Closing the generator cancels the request. Raises leaves of LlmosError.
        """
        ...

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> bytes:
        """The JSON of :func:`llmos.openai.embeddings.embedding_reply`. Being cancelled, it cancels the request."""
        ...


def create_app(backend: OpenAIBackend, authorize: Authorize, *, max_body_bytes: int = MAX_BODY_BYTES) -> FastAPI:
    """The routes of ``/v1``, each with scope ``infer``.

    Errors, also those of unknown routes, have OpenAI's shape. ``/v1/openapi.json`` describes the routes.
    """
    app = FastAPI(title="llmos /v1", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(_models(backend, authorize, max_body_bytes))
    app.include_router(_generation(backend, authorize, max_body_bytes))
    app.router.add_route("/v1/openapi.json", _document(app, authorize), include_in_schema=False)
    app.add_exception_handler(LlmosError, _on_llmos_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    return app


def _router(authorize: Authorize, max_body_bytes: int) -> APIRouter:
    """Routes that check the key before they read the body, and read no more of it than ``max_body_bytes``."""

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                request.scope["llmos.caller"] = await authorize(request, "infer")
                return await handle(Request(request.scope, _limited(request.receive, max_body_bytes)))

            return guarded

    bearer = Security(HTTPBearer(auto_error=False))  # for the OpenAPI document
    return APIRouter(prefix="/v1", route_class=Guarded, dependencies=[bearer])


def _models(backend: OpenAIBackend, authorize: Authorize, max_body_bytes: int) -> APIRouter:
    router = _router(authorize, max_body_bytes)

    @router.get("/models", summary="What is served")
    async def list_models() -> ModelList:
        return {"object": "list", "data": list(await backend.models())}

    @router.get("/models/{name:path}", summary="One served model")
    async def get_model(name: str) -> ModelCard:
        cards = {card["id"]: card for card in await backend.models()}
        if name not in cards:
            raise errors.unknown_model(name, cards)
        return cards[name]

    return router


def _generation(backend: OpenAIBackend, authorize: Authorize, max_body_bytes: int) -> APIRouter:
    router = _router(authorize, max_body_bytes)

    @router.post("/completions", summary="Continue texts", response_class=Response)
    async def completions(request: Request, body: Annotated[CompletionRequest, Body()]) -> Response:
        return await _answer(backend, request, body)

    @router.post("/chat/completions", summary="Continue a chat", response_class=Response)
    async def chat(request: Request, body: Annotated[ChatRequest, Body()]) -> Response:
        return await _answer(backend, request, body)

    @router.post("/embeddings", summary="Turn texts into vectors", response_class=Response)
    async def embeddings(request: Request, body: Annotated[EmbeddingRequest, Body()]) -> Response:
        found = await _unless_disconnected(request, backend.embed(body, request.scope["llmos.caller"]))
        return Response(found, 200 if found else CLIENT_CLOSED_REQUEST, media_type="application/json")

    return router


async def _answer(backend: OpenAIBackend, request: Request, body: CompletionRequest | ChatRequest) -> Response:
    """Waits for the first piece before it answers: what goes wrong until then has a status of its own."""
    pieces = backend.answer(body, request.scope["llmos.caller"])
    try:
        first = await _unless_disconnected(request, anext(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    if first is None or not body.stream:
        await pieces.aclose()
        return Response(first, 200 if first else CLIENT_CLOSED_REQUEST, media_type="application/json")
    return _EventStream(_events(first, pieces))


async def _unless_disconnected(request: Request, work: Awaitable[bytes]) -> bytes | None:
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


async def _events(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The stream has begun, so errors become its last event."""
    try:
        yield first
        async for piece in rest:
            yield piece
    except LlmosError as error:
        yield sse(errors.describe(error))
    except Exception:
        _log.exception("a stream failed")
        yield sse(_BUG)
    finally:
        await rest.aclose()


class _EventStream(StreamingResponse):
    """Closes its source when the client leaves, in whatever moment."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(
            events, media_type=MEDIA_TYPE, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


def _limited(receive: Receive, max_bytes: int) -> Receive:
    """``receive``, which refuses to read more than ``max_bytes``."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > max_bytes:
            raise HTTPException(413, f"the body is too large: expected at most {max_bytes} bytes")
        return message

    return limited


def _document(app: FastAPI, authorize: Authorize) -> Callable[[Request], Awaitable[Response]]:
    async def document(request: Request) -> Response:
        await authorize(request, "infer")
        return JSONResponse(app.openapi())

    return document


_BUG = errors.body("The server failed to answer; its log says why.", errors.SERVER, code="internal_error")


async def _on_llmos_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, LlmosError)
    return JSONResponse(errors.describe(error), error.http_status, errors.headers(error))


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    bodies: dict[str, type[BaseModel]] = {
        "/chat/completions": ChatRequest,
        "/embeddings": EmbeddingRequest,
        "": CompletionRequest,
    }
    model = next(model for end, model in bodies.items() if request.url.path.endswith(end))
    return await _on_llmos_error(request, errors.invalid(error, model.model_fields))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {404: f"There is no {request.url.path}.", 405: f"{request.url.path} does not take {request.method}."}
    message = known.get(error.status_code, str(error.detail))
    return JSONResponse(errors.body(message, errors.INVALID_REQUEST), error.status_code, error.headers)


async def _on_bug(_: Request, error: Exception) -> Response:
    return JSONResponse(_BUG, 500)
