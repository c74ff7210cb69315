"""An engine behind OpenAI's API: what a replica runs, and the server without Ray.

app = standalone(LocalEngine(model_dir), name="coder", key=...)
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from llmos.embedding import EncoderBackend
from llmos.errors import AuthError, LlmosError, UsageError
from llmos.front.usage import comment, tokens_of
from llmos.front.witness import Witness
from llmos.infer.encoder import EncoderEngine
from llmos.infer.engine import Engine
from llmos.infer.local import LocalEngine
from llmos.infer.request import GenerationRequest, TokenEvent
from llmos.merging import together
from llmos.models import Tokenizer
from llmos.one_model import OneModel
from llmos.openai.caller import Caller
from llmos.openai.calls import ToolParser
from llmos.openai.embeddings import EmbeddingRequest
from llmos.openai.replies import Piece, Token, Usage, reply_to, usage
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.server import create_app
from llmos.openai.tokens import DetokenizeRequest, TokenizeRequest, text_reply, tokens_reply
from llmos.sampling import sampling
from llmos.tool_forms import ToolCalling, form_of
from llmos.usage import CLIENT_GONE

if TYPE_CHECKING:
    from llmos.control.store.completions import Completions


class EngineBackend(OneModel):
    """Answers OpenAI requests (``openai.server.OpenAIBackend``) for one model, ``name``, with ``engine``.

    ``weights`` are keys' shares of the tokens while requests wait; others' are 1. With a ``witness``, streams tell the
    front door what they have used, and the witness is told of every request.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        name: str,
        weights: Mapping[str, float] | None = None,
        witness: Witness | None = None,
    ) -> None:
        super().__init__(name)
        self._witness = witness
        self._engine, self._tokenizer, self._weights = engine, tokenizer, weights or {}
        self._tools = ToolCalling(form_of(tokenizer))

    async def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        """Server-sent events or one JSON document. Raises what the engine and the tokenizer raise."""
        self.check(request.model)
        reply = reply_to(request)
        prompts = await asyncio.to_thread(self.prompts, request)
        asked = self._asked(request, caller, reply.id, prompts)
        echoes = self._echoes(request, prompts, request.n or 1)
        parsers = [self._tools.parser(request) for _ in asked]
        latest: dict[int, TokenEvent] = {}
        status = CLIENT_GONE
        try:
            async with aclosing(together([self._events(request, one) for one in asked])) as events:
                async for index, event in events:
                    before = latest.get(index)
                    latest[index] = event if before is None or request.stream else before.then(event)
                    echo = echoes[index] if before is None else ""
                    if request.stream and (chunk := reply.chunk(index, self._piece(event, echo, parsers[index]))):
                        yield chunk
            status = 200
        except LlmosError as error:
            status = error.http_status
            if explained := self._explained(error, request):
                raise explained from error
            raise
        finally:
            counts = _counts(prompts, latest, request.n or 1)
            self._told(caller, counts, status)
        if request.stream:
            yield (comment(tokens_of(counts)) if self._witness else b"") + reply.end(counts)
        else:
            pieces = [self._piece(latest[i], echo, parsers[i]) for i, echo in enumerate(echoes)]
            yield reply.whole(pieces, counts)

    def _explained(self, error: LlmosError, request: CompletionRequest | ChatRequest) -> UsageError | None:
        """An ``error`` about the engine's grammar, with the field of ``request`` that this comes from."""
        constraint = self._tools.constraint(request)
        if isinstance(error, UsageError) and error.param == "grammar" and constraint is not None:
            return UsageError(error.message, hint=error.hint, param=constraint.field)
        return None

    def _told(self, caller: Caller, counts: Usage, status: int) -> None:
        """A request is over. One that the engine has not begun with has used nothing."""
        if self._witness is not None and counts["prompt_tokens"]:
            self._witness.ended(caller, tokens_of(counts), status)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> bytes:
        """Raises UsageError: a model that generates text has no vectors of texts."""
        self.check(request.model)
        what = f"`{request.model}` generates text: it makes no embeddings"
        raise UsageError(what, hint="Serve an encoder, such as a model of the BERT family.", param="model")

    async def tokenize(self, request: TokenizeRequest, caller: Caller) -> bytes:
        """The tokens of a text or a chat, as the model gets them."""
        self.check(request.model)
        return await asyncio.to_thread(self._tokens_reply, request)

    async def detokenize(self, request: DetokenizeRequest, caller: Caller) -> bytes:
        """The text of tokens; control tokens are spelled out. Raises UsageError for what is no token."""
        self.check(request.model)
        size = self._tokenizer.vocab_size
        if wrong := next((token for token in request.tokens if token >= size), None):
            raise UsageError(f"`tokens` has {wrong}: expected 0 to {size - 1}", param="tokens")
        return await asyncio.to_thread(self._text_reply, request.tokens)

    def prompts(self, request: CompletionRequest | ChatRequest) -> list[tuple[int, ...]]:
        """The tokens of each prompt. Raises what the tokenizer raises."""
        tokenizer = self._tokenizer
        if isinstance(request, ChatRequest):
            tools = [tool.plain for tool in request.offered]
            return [tuple(tokenizer.encode_chat([message.plain for message in request.messages], tools=tools))]
        nothing = [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]  # a new document begins
        given = [tokenizer.encode(p, add_special_tokens=True) if isinstance(p, str) else p for p in request.prompts]
        return [tuple(tokens or nothing) for tokens in given]

    def _asked(
        self, request: CompletionRequest | ChatRequest, caller: Caller, id: str, prompts: list[tuple[int, ...]]
    ) -> list[GenerationRequest]:
        """What the engine is asked: ``n`` answers to each prompt."""
        tools = self._tools
        constraint, stops, shown = tools.constraint(request), tools.stops(request), tools.shown(request)
        return [
            GenerationRequest(
                f"{id}-{i}-{j}",
                prompt,
                sampling(request, j, constraint, stops, shown),
                tenant=caller.key,
                user=request.user or "",
                priority=request.level,
                weight=self._weights.get(caller.key, 1.0),
                deadline_s=request.deadline_s,
            )
            for i, prompt in enumerate(prompts)
            for j in range(request.n or 1)
        ]

    def _events(self, request: CompletionRequest | ChatRequest, asked: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """The engine's answer; without it, if no tokens are wanted."""
        return _nothing(asked) if request.limit == 0 else self._engine.generate(asked)

    def _tokens_reply(self, request: TokenizeRequest) -> bytes:
        """Megabytes of text take a second: in a thread, so that streams go on."""
        tokens = self._tokens_of(request)
        asked = bool(request.return_token_strs)
        spelled = [self._spelling(token).decode(errors="replace") for token in tokens] if asked else None
        return tokens_reply(tokens, self._engine.stats()["context_length"], spelled)

    def _text_reply(self, tokens: Sequence[int]) -> bytes:
        return text_reply(b"".join(map(self._spelling, tokens)).decode(errors="replace"))

    def _tokens_of(self, request: TokenizeRequest) -> list[int]:
        if request.messages is None:
            return self._tokenizer.encode(request.prompt or "", add_special_tokens=request.add_special_tokens)
        messages, tools = [message.plain for message in request.messages], [tool.plain for tool in request.tools or []]
        return self._tokenizer.encode_chat(messages, request.add_generation_prompt, tools)

    def _echoes(self, request: CompletionRequest | ChatRequest, prompts: list[tuple[int, ...]], n: int) -> list[str]:
        """What each answer begins with: its prompt, if that was asked for."""
        if isinstance(request, ChatRequest) or not request.echo:
            return [""] * (len(prompts) * n)
        given = zip(request.prompts, prompts, strict=True)
        texts = [text if isinstance(text, str) else self._tokenizer.decode(tokens) for text, tokens in given]
        return [text for text in texts for _ in range(n)]

    def _piece(self, event: TokenEvent, echo: str, parser: ToolParser | None) -> Piece:
        tokens = tuple(
            Token(self._spelling(token.token), token.logprob, tuple(Token(self._spelling(t), p) for t, p in token.top))
            for token in event.logprobs
        )
        if parser is None:
            return Piece(echo + event.text, tokens or None, event.finish_reason, echoed=len(echo))
        text, found = parser.push(event.text)
        if event.finish_reason is None:
            return Piece(text, tokens or None, None, tuple(found))
        more, last = parser.finish()
        reason = "tool_calls" if parser.found and event.finish_reason == "stop" else event.finish_reason
        return Piece(text + more, tokens or None, reason, (*found, *last))

    def _spelling(self, token: int) -> bytes:
        return self._tokenizer.spelling(token)


class StoredHere:
    """Completions in a store of this process (``openai.stored.CompletionPort``)."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    async def completions(self, verb: str, tenant: str, **arguments: Any) -> Any:
        """See :class:`llmos.openai.stored.CompletionPort`."""
        return await asyncio.to_thread(self._completions.call, verb, tenant, arguments)


def backend_of(
    engine: LocalEngine | EncoderEngine,
    name: str,
    weights: Mapping[str, float] | None = None,
    witness: Witness | None = None,
) -> EngineBackend | EncoderBackend:
    """What answers with ``engine``, whichever it is. A replica's has a ``witness``."""
    if isinstance(engine, EncoderEngine):
        return EncoderBackend(engine, name, weights, witness)
    return EngineBackend(engine, engine.tokenizer, name, weights, witness)


def standalone(
    engine: LocalEngine | EncoderEngine, name: str, key: str, completions: Completions | None = None
) -> FastAPI:
    """A server for one engine, which asks for ``key``. ``/healthz`` needs none. It closes the engine when it ends.

    ``completions`` keep chats for ``store: true``; without, nothing is stored.
    """
    expected = f"Bearer {key}".encode()

    async def authorize(request: Request, _scope: str) -> Caller:
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected):
            raise AuthError("the API key is missing or not valid", hint="Send `Authorization: Bearer KEY`.")
        return Caller(key="")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = create_app(
        backend_of(engine, name), authorize, stored=None if completions is None else StoredHere(completions)
    )
    app.router.lifespan_context = lifespan

    @app.get("/healthz")
    async def healthz() -> Response:
        found = engine.stats()
        return JSONResponse({"healthy": found["healthy"]}, 200 if found["healthy"] else 503)

    return app


def _counts(prompts: list[tuple[int, ...]], latest: Mapping[int, TokenEvent], each: int) -> Usage:
    """A prompt with ``each`` answers counts once, and what the first of them that has begun found in the cache."""
    read = cached = 0
    for number, prompt in enumerate(prompts):
        answers = range(number * each, (number + 1) * each)
        if (first := next((latest[i] for i in answers if i in latest), None)) is not None:
            read += len(prompt)
            cached += first.cached_tokens
    return usage(read, sum(event.completion_tokens for event in latest.values()), cached)


async def _nothing(asked: GenerationRequest) -> AsyncIterator[TokenEvent]:
    """The answer of no tokens."""
    yield TokenEvent(asked.id, (), "", finish_reason="length", prompt_tokens=len(asked.prompt_tokens))
