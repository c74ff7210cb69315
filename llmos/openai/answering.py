"""From a request of ``/v1`` that can be read to its response: headers, streams, what is kept of the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING

from fastapi import Request, Response

from llmos.openai.http import CLIENT_CLOSED_REQUEST, EventStream, caller_of, error_events, unless_disconnected
from llmos.openai.idempotency import HEADER, REPLAYED, Replays
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.sse import DONE, MEDIA_TYPE
from llmos.openai.stored import Keeper
from llmos.openai.wire import Wire

if TYPE_CHECKING:
    from llmos.openai.server import OpenAIBackend

IGNORED = "llmos-ignored-params"
JSON = "application/json"


class Answering:
    """Asks ``backend``, and keeps answers: by idempotency keys, and in the store of the tenants who want that."""

    def __init__(self, backend: OpenAIBackend, keeper: Keeper) -> None:
        self._backend, self._keeper, self._replays = backend, keeper, Replays()

    async def generate(self, request: Request, body: CompletionRequest | ChatRequest) -> Response:
        """Waits for the first piece before it answers: what goes wrong until then has a status of its own."""
        ignored = body.ignored()
        if keeping := await self._keeper.wanted(body, caller_of(request)):
            ignored -= {"metadata"}
        elif isinstance(body, ChatRequest):
            ignored |= {name for name in ("store", "metadata") if getattr(body, name)}
        headers = _headers(ignored)
        once = await self._begin(request)
        if once.before is not None:
            return Response(once.before, 200, {**headers, REPLAYED: "true"}, MEDIA_TYPE if body.stream else JSON)
        pieces = self._pieces(request, body, keeping)

        async def close() -> None:
            await pieces.aclose()
            once.release()

        try:
            first = await unless_disconnected(request, anext(pieces))
        except BaseException:
            await close()
            raise
        if body.stream and first is not None:
            return EventStream(error_events(once.recorded(first, pieces)), headers, close)
        once.keep(first)
        await close()
        return _response(first, headers)

    async def whole(self, request: Request, body: Wire, work: Callable[[], Awaitable[bytes]]) -> Response:
        """A response of what ``work`` returns, the JSON that answers ``body``."""
        headers = _headers(body.ignored())
        once = await self._begin(request)
        if once.before is not None:
            return Response(once.before, 200, {**headers, REPLAYED: "true"}, JSON)
        try:
            found = await unless_disconnected(request, work())
            once.keep(found)
            return _response(found, headers)
        finally:
            once.release()

    async def _pieces(
        self, request: Request, body: CompletionRequest | ChatRequest, keeping: bool
    ) -> AsyncGenerator[bytes, None]:
        """The backend's answer. What is to be kept is kept before its last piece is sent: then it can be found."""
        caller, kept = caller_of(request), bytearray()
        pieces = self._backend.answer(body, caller)
        try:
            async for piece in pieces:
                if keeping and isinstance(body, ChatRequest):
                    kept += piece
                    if not body.stream or piece.endswith(DONE):
                        await self._keeper.keep(body, caller, bytes(kept))
                yield piece
        finally:
            await pieces.aclose()

    async def _begin(self, request: Request) -> _Once:
        """What keeps the answer by the idempotency key, if the request has one."""
        key, caller = request.headers.get(HEADER), caller_of(request).key
        if key is None:
            return _Once(None, caller, "", None)
        before = self._replays.begin(caller, key, request.url.path, await request.body())
        return _Once(self._replays, caller, key, before)


class _Once:
    """The one answer to a request by its idempotency key; without ``replays``, nothing is kept."""

    def __init__(self, replays: Replays | None, caller: str, key: str, before: bytes | None) -> None:
        self._replays, self._place, self.before = replays, (caller, key), before

    def keep(self, answer: bytes | None) -> None:
        """The whole answer; None, if there is none."""
        if self._replays is not None and answer is not None:
            self._replays.keep(*self._place, answer)
            self._replays = None

    def release(self) -> None:
        """Free the key, if there is no answer."""
        if self._replays is not None:
            self._replays.forget(*self._place)
            self._replays = None

    async def recorded(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """``first`` and ``rest`` of a stream, which is kept if it comes to its end."""
        whole = bytearray(first)
        yield first
        async for piece in rest:
            if self._replays is not None:
                whole += piece
            yield piece
        if whole.endswith(DONE):
            self.keep(bytes(whole))


def _headers(ignored: set[str]) -> dict[str, str]:
    return {IGNORED: ", ".join(sorted(ignored))} if ignored else {}


def _response(answer: bytes | None, headers: dict[str, str]) -> Response:
    return Response(answer, CLIENT_CLOSED_REQUEST if answer is None else 200, headers, JSON)
