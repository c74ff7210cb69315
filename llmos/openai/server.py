"""The routes of ``/v1`` over whatever answers them: an engine in this process, or replicas elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Body, FastAPI, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from llmos.openai import errors
from llmos.openai.answering import Answering
from llmos.openai.caller import Caller
from llmos.openai.embeddings import EmbeddingRequest
from llmos.openai.hot import HotApp
from llmos.openai.http import RequestIds, answer_errors, caller_of, enter, limited
from llmos.openai.replies import ModelCard, ModelDeleted, ModelList
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.stored import CompletionPort, Keeper, Nowhere, UpdateRequest, add_stored_routes
from llmos.openai.tokens import DetokenizeRequest, TokenizeRequest
from llmos.openai.wire import Wire

MAX_BODY_BYTES = 4 * 2**20

Authorize = Callable[[Request, str], Awaitable[Caller]]
"""``await authorize(request, scope)`` says who asks. Raises AuthError or ForbiddenError."""


class OpenAIBackend(Protocol):
    """Answers requests with bytes that are ready to send, so that whoever passes them on does nothing per token.

    Callers share what there is, and nobody finds out about another's requests. Everything raises leaves of LlmosError.
    """

    async def models(self) -> Sequence[ModelCard]:
        """What is served now."""
        ...

    def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        """For ``stream``, server-sent events with the closing ``[DONE]``, in pieces; else one piece of JSON.

        Closing the generator cancels the request.
        """
        ...

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> bytes:
        """The JSON of :func:`llmos.openai.embeddings.embedding_reply`. Being cancelled, it cancels the request."""
        ...

    async def tokenize(self, request: TokenizeRequest, caller: Caller) -> bytes:
        """The JSON of :func:`llmos.openai.tokens.tokens_reply`."""
        ...

    async def detokenize(self, request: DetokenizeRequest, caller: Caller) -> bytes:
        """The JSON of :func:`llmos.openai.tokens.text_reply`."""
        ...

    async def remove(self, model: str, authorization: str | None) -> None:
        """Serve ``model``, which is served, no more. ``authorization`` is the header of who wants that, an admin."""
        ...


def create_app(
    backend: OpenAIBackend,
    authorize: Authorize,
    *,
    stored: CompletionPort | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> HotApp:
    """The routes of ``/v1``, each with scope ``infer``; removing a model takes ``admin``.

    Errors, also those of unknown routes, have OpenAI's shape. ``/v1/openapi.json`` describes the routes. ``stored``
    keeps chat completions for tenants that want that; without it, nobody has storage.
    """
    port = stored or Nowhere()
    answering = Answering(backend, Keeper(port))
    app = HotApp(title="llmos /v1", docs_url=None, redoc_url=None, openapi_url=None)
    for router in (
        _models(backend, _router(authorize, max_body_bytes), _router(authorize, max_body_bytes, "admin")),
        _generation(backend, answering, _router(authorize, max_body_bytes), port),
        _tokens(backend, answering, _router(authorize, max_body_bytes)),
    ):
        app.include_router(router, prefix="/v1")
    app.include_router(_tokens(backend, answering, _router(authorize, max_body_bytes)), include_in_schema=False)
    app.router.add_route("/v1/openapi.json", _document(app, authorize), include_in_schema=False)
    answer_errors(app, _BODIES)
    app.add_middleware(RequestIds)
    app.heat(authorize, answering.generate, max_body_bytes)
    return app


_BODIES: dict[str, type[Wire]] = {
    "/chat/completions": ChatRequest,
    "/completions": CompletionRequest,
    "/embeddings": EmbeddingRequest,
    "/detokenize": DetokenizeRequest,
    "/tokenize": TokenizeRequest,
    "": UpdateRequest,
}
"""What each route takes, by the end of its path; the first that fits."""


def _router(authorize: Authorize, max_body_bytes: int, scope: str = "infer") -> APIRouter:
    """Routes that check the key before they read the body, and read no more of it than ``max_body_bytes``."""

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                if "caller" not in request.scope["llmos"]:  # else `HotApp` has asked
                    enter(request, await authorize(request, scope))
                return await handle(limited(request, max_body_bytes))

            return guarded

    bearer = Security(HTTPBearer(auto_error=False))  # for the OpenAPI document
    return APIRouter(route_class=Guarded, dependencies=[bearer])


def _models(backend: OpenAIBackend, router: APIRouter, admins: APIRouter) -> APIRouter:
    async def served(name: str) -> ModelCard:
        cards = {card["id"]: card for card in await backend.models()}
        if name not in cards:
            raise errors.unknown_model(name, cards)
        return cards[name]

    @router.get("/models", summary="What is served")
    async def list_models() -> ModelList:
        return {"object": "list", "data": list(await backend.models())}

    @router.get("/models/{name:path}", summary="One served model")
    async def get_model(name: str) -> ModelCard:
        return await served(name)

    @admins.delete("/models/{name:path}", summary="Serve a model no more")
    async def delete_model(request: Request, name: str) -> ModelDeleted:
        await served(name)
        await backend.remove(name, request.headers.get("Authorization"))
        return {"id": name, "object": "model", "deleted": True}

    router.include_router(admins)
    return router


def _generation(backend: OpenAIBackend, answering: Answering, router: APIRouter, stored: CompletionPort) -> APIRouter:
    @router.post("/completions", summary="Continue texts", response_class=Response)
    async def completions(request: Request, body: Annotated[CompletionRequest, Body()]) -> Response:
        return await answering.generate(request, body)

    @router.post("/chat/completions", summary="Continue a chat", response_class=Response)
    async def chat(request: Request, body: Annotated[ChatRequest, Body()]) -> Response:
        return await answering.generate(request, body)

    @router.post("/embeddings", summary="Turn texts into vectors", response_class=Response)
    async def embeddings(request: Request, body: Annotated[EmbeddingRequest, Body()]) -> Response:
        return await answering.whole(request, body, lambda: backend.embed(body, caller_of(request)))

    add_stored_routes(router, stored)
    return router


def _tokens(backend: OpenAIBackend, answering: Answering, router: APIRouter) -> APIRouter:
    @router.post("/tokenize", summary="The tokens of a text or a chat", response_class=Response)
    async def tokenize(request: Request, body: Annotated[TokenizeRequest, Body()]) -> Response:
        return await answering.whole(request, body, lambda: backend.tokenize(body, caller_of(request)))

    @router.post("/detokenize", summary="The text of tokens", response_class=Response)
    async def detokenize(request: Request, body: Annotated[DetokenizeRequest, Body()]) -> Response:
        return await answering.whole(request, body, lambda: backend.detokenize(body, caller_of(request)))

    return router


def _document(app: FastAPI, authorize: Authorize) -> Callable[[Request], Awaitable[Response]]:
    async def document(request: Request) -> Response:
        enter(request, await authorize(request, "infer"))
        return JSONResponse(app.openapi())

    return document
