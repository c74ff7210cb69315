"""An engine that computes nothing, behind the application that replicas serve: what is left is what is around engines.

    python -m benchmarks.frontdoor.mock PORT [MODEL_DIR]

With a model's directory the engine is a real one. Whoever asks must have the key in ``LLMOS_API_KEY`` or a header that
the front door has signed with the secret in ``BENCH_DOOR_SECRET``, as in a cluster. ``/echo`` returns what it gets.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence

from fastapi import Request
from starlette.requests import Request as PlainRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from llmos.errors import AuthError, UsageError
from llmos.front import caller as signed
from llmos.front.listening import Drain, Server, listen, spare_garbage
from llmos.front.replica import create_replica_app
from llmos.front.usage import comment
from llmos.openai.caller import Caller
from llmos.openai.embeddings import EmbeddingRequest
from llmos.openai.replies import ModelCard, Piece, model_card, reply_to, usage
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.server import Authorize
from llmos.openai.tokens import DetokenizeRequest, TokenizeRequest
from llmos.settings import ENV_KEY
from llmos.usage import Tokens

ENV_DOOR = "BENCH_DOOR_SECRET"
AT_ONCE, EVERY_5_MS, EVERY_10_MS = "mock", "mock-5ms", "mock-10ms"
PACES_S = {AT_ONCE: 0.0, EVERY_5_MS: 0.005, EVERY_10_MS: 0.010}
"""What it serves, and the time between two tokens of an answer."""
_TEXTS = " one", " two"
"""By turns: a proxy may take a model that repeats itself for broken, as LiteLLM's does after 100 tokens."""
_PROMPT_TOKENS = 64
_ANSWERS_ONLY = UsageError("the mock engine answers completions and chats only")


class MockBackend:
    """An ``OpenAIBackend`` that answers with ``max_tokens`` tokens, each in a turn of the event loop of its own.

    So do engines: what several tokens of a stream share with each other, a write or a read, is not what they cost.
    """

    async def models(self) -> Sequence[ModelCard]:
        """One for each pace."""
        return [model_card(name, 0) for name in PACES_S]

    async def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        """The tokens; a stream's have their time from its beginning, so that delays do not add up."""
        newer = request.max_completion_tokens if isinstance(request, ChatRequest) else None
        count = newer or request.max_tokens or 1
        reply, counts = reply_to(request), usage(_PROMPT_TOKENS, count)
        if not request.stream:
            yield reply.whole([Piece("".join(_TEXTS[n % 2] for n in range(count)), None, "length")], counts)
            return
        pace_s, began = PACES_S[request.model], time.monotonic()
        if count > 1:
            yield reply.chunk(0, Piece(_TEXTS[0]))
        pieces = [reply.chunk(0, Piece(text)) for text in _TEXTS]
        for number in range(1, count):
            await asyncio.sleep(max(0.0, began + number * pace_s - time.monotonic()))
            if number < count - 1:
                yield pieces[number % 2]
        last = reply.chunk(0, Piece(_TEXTS[(count - 1) % 2], None, "length"))
        yield last + comment(Tokens(_PROMPT_TOKENS, 0, count)) + reply.end(counts)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> bytes:
        """Raises UsageError, as the three below: answers are what is measured."""
        raise _ANSWERS_ONLY

    async def tokenize(self, request: TokenizeRequest, caller: Caller) -> bytes:
        """Raises UsageError."""
        raise _ANSWERS_ONLY

    async def detokenize(self, request: DetokenizeRequest, caller: Caller) -> bytes:
        """Raises UsageError."""
        raise _ANSWERS_ONLY

    async def remove(self, model: str, authorization: str | None) -> None:
        """Raises UsageError."""
        raise _ANSWERS_ONLY


def key_or_signature(key: str, secret: bytes) -> Authorize:
    """Lets in the front door by its signature, and who has ``key``."""
    expected, of_door = f"Bearer {key}".encode(), signed.authorizer(secret)

    async def authorize(request: Request, scope: str) -> Caller:
        if signed.HEADER in request.headers:
            return await of_door(request, scope)
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected):
            raise AuthError("the API key is missing or not valid", hint="Send `Authorization: Bearer KEY`.")
        return Caller("benchmark")

    return authorize


def with_echo(app: ASGIApp) -> ASGIApp:
    """``app``, with ``/echo`` beside it, before any check of its."""

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/echo":
            return await app(scope, receive, send)
        body = await PlainRequest(scope, receive).body()
        await Response(body, media_type="application/json")(scope, receive, send)

    return both


def application() -> ASGIApp:
    """What replicas serve, over the mock engine; key and secret are in the environment."""
    authorize = key_or_signature(os.environ[ENV_KEY], os.environ[ENV_DOOR].encode())
    return Drain(with_echo(create_replica_app(MockBackend(), authorize)))


def _of_model(directory: str) -> ASGIApp:
    from llmos.infer.local import LocalEngine
    from llmos.serving import EngineBackend

    engine = LocalEngine(directory, process=True, dtype="bfloat16", threads=1, context_length=4096)
    authorize = key_or_signature(os.environ[ENV_KEY], os.environ[ENV_DOOR].encode())
    return Drain(create_replica_app(EngineBackend(engine, engine.tokenizer, AT_ONCE), authorize))


if __name__ == "__main__":
    server = Server(
        application() if len(sys.argv) == 2 else _of_model(sys.argv[2]), listen("127.0.0.1", int(sys.argv[1]))
    )
    spare_garbage()
    server.start()
    server.join()
