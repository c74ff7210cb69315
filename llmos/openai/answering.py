"""From a request of ``/v1`` that can be read to its response: headers, streams, what is kept of the answer."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fastapi import Request, Response

from llmos.openai.caller import Caller
from llmos.openai.http import CLIENT_CLOSED_REQUEST, EventStream, Whole, caller_of, error_events, unless_disconnected
from llmos.openai.idempotency import HEADER, MAX_ANSWER_BYTES, REPLAYED, Replays
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.sse import DONE, MEDIA_TYPE
from llmos.openai.stored import MAX_STORED_BYTES, Keeper
from llmos.openai.wire import Wire

if TYPE_CHECKING:
    from llmos.openai.server import OpenAIBackend

IGNORED = "llmos-ignored-params"
JSON = "application/json"
_NONE: Mapping[str, str] = {}

_log = logging.getLogger(__name__)


@runtime_checkable
class PassesOn(Protocol):
    """A backend that sends requests to others: it takes ``raw``, the body that ``request`` was read from, too, which
    need not be written again."""

    def answer(
        self, request: CompletionRequest | ChatRequest, caller: Caller, raw: bytes = b""
    ) -> AsyncGenerator[bytes, None]:
        """As :meth:`OpenAIBackend.answer`."""
        ...

    async def whole(self, request: CompletionRequest | ChatRequest, caller: Caller, raw: bytes = b"") -> bytes:
        """The answer to a request that is no stream. Being cancelled, it cancels the request."""
        ...


class Answering:
    """Asks ``backend``, and keeps answers: by idempotency keys, and in the store of the tenants who want that."""

    def __init__(self, backend: OpenAIBackend, keeper: Keeper) -> None:
        self._backend, self._keeper, self._replays = backend, keeper, Replays()
        self._passes_on = backend if isinstance(backend, PassesOn) else None

    async def generate(self, request: Request, body: CompletionRequest | ChatRequest, raw: bytes = b"") -> Response:
        """Waits for the first piece before it answers: what goes wrong until then has a status of its own.

        ``raw`` is what ``body`` was read from, if that is at hand.
        """
        ignored = body.ignored()
        if keeping := await self._keeper.wanted(body, caller_of(request)):
            ignored -= {"metadata"}
        elif isinstance(body, ChatRequest):
            ignored |= {name for name in ("store", "metadata") if getattr(body, name)}
        headers = _headers(ignored)
        if not (keeping or HEADER in request.headers):
            return await self.bare(request, body, raw, headers)
        once = await self._begin(request, raw)
        if once.before is not None:
            return Response(once.before, 200, {**headers, REPLAYED: "true"}, MEDIA_TYPE if body.stream else JSON)
        pieces = self._pieces(caller_of(request), body, raw)
        if keeping:
            pieces = self._kept(caller_of(request), body, pieces)

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

    async def bare(
        self, request: Request, body: CompletionRequest | ChatRequest, raw: bytes, headers: Mapping[str, str] = _NONE
    ) -> Response:
        """The answer as it is, of which nothing is kept, and which says nothing of parameters without effect: replicas,
        whose front door has seen to that."""
        if not body.stream:
            answer = await unless_disconnected(request, self._whole(body, caller_of(request), raw))
            return _response(answer, headers)
        pieces = self._pieces(caller_of(request), body, raw)
        try:
            first = await unless_disconnected(request, anext(pieces))
        except BaseException:
            await pieces.aclose()
            raise
        if first is None:
            await pieces.aclose()
            return _response(None, headers)
        return EventStream(error_events(_from(first, pieces)), headers, pieces.aclose)

    async def whole(self, request: Request, body: Wire, work: Callable[[], Awaitable[bytes]]) -> Response:
        """A response of what ``work`` returns, the JSON that answers ``body``."""
        headers = _headers(body.ignored())
        once = await self._begin(request, b"")
        if once.before is not None:
            return Response(once.before, 200, {**headers, REPLAYED: "true"}, JSON)
        try:
            found = await unless_disconnected(request, work())
            once.keep(found)
            return _response(found, headers)
        finally:
            once.release()

    async def _whole(self, body: CompletionRequest | ChatRequest, caller: Caller, raw: bytes) -> bytes:
        if self._passes_on is not None:
            return await self._passes_on.whole(body, caller, raw)
        async with aclosing(self._backend.answer(body, caller)) as pieces:
            return await anext(pieces)

    def _pieces(self, caller: Caller, body: CompletionRequest | ChatRequest, raw: bytes) -> AsyncGenerator[bytes, None]:
        if self._passes_on is not None:
            return self._passes_on.answer(body, caller, raw)
        return self._backend.answer(body, caller)

    async def _kept(
        self, caller: Caller, body: CompletionRequest | ChatRequest, pieces: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """``pieces`` of an answer that is kept, before its last piece is sent: then it can be found."""
        kept: bytearray | None = bytearray()
        async with aclosing(pieces):
            async for piece in pieces:
                if kept is not None and isinstance(body, ChatRequest):
                    kept += piece
                    if len(kept) > MAX_STORED_BYTES:
                        _log.warning("the answer of %s is not stored: it is too long", caller.request_id)
                        kept = None
                    elif not body.stream or piece.endswith(DONE):
                        await self._keeper.keep(body, caller, bytes(kept))
                yield piece

    async def _begin(self, request: Request, raw: bytes) -> _Once:
        """What keeps the answer by the idempotency key, if the request has one."""
        key = request.headers.get(HEADER)
        if key is None:
            return _Once(None, "", "", None)
        caller = caller_of(request).key
        before = self._replays.begin(caller, key, request.url.path, raw or await request.body())
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
        """``first`` and ``rest`` of a stream, which is kept if it comes to its end and is not too long to be."""
        whole = bytearray(first) if self._replays is not None else None
        yield first
        async for piece in rest:
            if whole is not None:
                whole += piece
                if len(whole) > MAX_ANSWER_BYTES:
                    whole = None
            yield piece
        if whole is not None and whole.endswith(DONE):
            self.keep(bytes(whole))


async def _from(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for piece in rest:
        yield piece


def _headers(ignored: set[str]) -> dict[str, str]:
    return {IGNORED: ", ".join(sorted(ignored))} if ignored else {}


def _response(answer: bytes | None, headers: Mapping[str, str]) -> Response:
    return Response(None, CLIENT_CLOSED_REQUEST, headers, JSON) if answer is None else Whole(answer, headers)
