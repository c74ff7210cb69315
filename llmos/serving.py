"""An engine behind OpenAI's API: what a replica runs, and the server without Ray.

app = standalone(LocalEngine(model_dir), name="coder", key=...)
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from llmos.embedding import EncoderBackend
from llmos.errors import AuthError, UsageError
from llmos.infer.encoder import EncoderEngine
from llmos.infer.engine import Engine
from llmos.infer.local import LocalEngine
from llmos.infer.request import GenerationRequest, Grammar, SamplingParams, TokenEvent
from llmos.models import Tokenizer
from llmos.openai.caller import Caller
from llmos.openai.embeddings import EmbeddingRequest
from llmos.openai.errors import unknown_model
from llmos.openai.replies import ModelCard, Piece, Token, model_card, reply_to, usage
from llmos.openai.schema import SEED_BITS, ChatRequest, CompletionRequest
from llmos.openai.server import create_app
from llmos.openai.structure import Constraint
from llmos.openai.tools import BEGIN, END, ToolParser, calls

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default; chats may fill the context

Indexed = tuple[int, TokenEvent]


class EngineBackend:
    """Answers OpenAI requests (``openai.server.OpenAIBackend``) for one model, ``name``, with ``engine``.

    ``weights`` are keys' shares of the tokens while requests wait; others' are 1.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, name: str, weights: Mapping[str, float] | None = None
    ) -> None:
        self._engine, self._tokenizer, self._weights = engine, tokenizer, weights or {}
        self._form = _ToolForm(tokenizer)
        self._card = model_card(name, int(time.time()))

    async def models(self) -> Sequence[ModelCard]:
        """The one model."""
        return [self._card]

    async def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        """Server-sent events or one JSON document. Raises what the engine and the tokenizer raise."""
        if request.model != self._card["id"]:
            raise unknown_model(request.model, [self._card["id"]])
        reply = reply_to(request)
        prompts = await asyncio.to_thread(self.prompts, request)
        n = request.n or 1
        constraint = self._form.constraint(request)
        params = [sampling(request, index, constraint, self._form.stops(request)) for index in range(n)]
        who = caller.key, request.priority, self._weights.get(caller.key, 1.0), request.deadline_s
        asked = [
            GenerationRequest(f"{reply.id}-{i}-{j}", prompts[i], params[j], *who)
            for i in range(len(prompts))
            for j in range(n)
        ]
        echoes = self._echoes(request, prompts, n)
        parsers = [self._form.parser(request) for _ in asked]
        latest: dict[int, TokenEvent] = {}
        try:
            async with aclosing(_together([self._engine.generate(one) for one in asked])) as events:
                async for index, event in events:
                    before = latest.get(index)
                    latest[index] = event if before is None or request.stream else before.then(event)
                    echo = echoes[index] if before is None else ""
                    if request.stream and (chunk := reply.chunk(index, self._piece(event, echo, parsers[index]))):
                        yield chunk
        except UsageError as error:
            if constraint is not None and error.param == "grammar":
                raise UsageError(error.message, hint=error.hint, param=constraint.field) from error
            raise
        counts = usage(sum(map(len, prompts)), sum(event.completion_tokens for event in latest.values()))
        if request.stream:
            yield reply.end(counts)
        else:
            pieces = [self._piece(latest[i], echo, parsers[i]) for i, echo in enumerate(echoes)]
            yield reply.whole(pieces, counts)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> bytes:
        """Raises UsageError: a model that generates text has no vectors of texts."""
        what = f"`{request.model}` generates text: it makes no embeddings"
        raise UsageError(what, hint="Serve an encoder, such as a model of the BERT family.", param="model")

    def prompts(self, request: CompletionRequest | ChatRequest) -> list[tuple[int, ...]]:
        """The tokens of each prompt. Raises what the tokenizer raises."""
        tokenizer = self._tokenizer
        if isinstance(request, ChatRequest):
            tools = [tool.plain for tool in request.offered]
            return [tuple(tokenizer.encode_chat([message.plain for message in request.messages], tools=tools))]
        nothing = [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]  # a new document begins
        given = [tokenizer.encode(p, add_special_tokens=True) if isinstance(p, str) else p for p in request.prompts]
        return [tuple(tokens or nothing) for tokens in given]

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
            return Piece(echo + event.text, tokens or None, event.finish_reason)
        text, found = parser.push(event.text)
        if event.finish_reason is None:
            return Piece(text, tokens or None, None, tuple(found))
        more, last = parser.finish()
        reason = "tool_calls" if parser.found and event.finish_reason == "stop" else event.finish_reason
        return Piece(text + more, tokens or None, reason, (*found, *last))

    def _spelling(self, token: int) -> bytes:
        return self._tokenizer.spelling(token)


class _ToolForm:
    """How the model of ``tokenizer`` writes calls of tools, as its chat template says."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        template = tokenizer.chat_template
        controls = {tokenizer.spelling(token).decode() for token in tokenizer.control_ids}
        self._tagged = BEGIN in template and not controls & {BEGIN, END}  # control tokens have no text to look at
        self._arguments = "parameters" if '"parameters"' in template else "arguments"

    def constraint(self, request: CompletionRequest | ChatRequest) -> Constraint | None:
        """The grammar of the answers to ``request``: that of calls, if one is required."""
        if isinstance(request, ChatRequest) and request.required:
            parallel = request.parallel_tool_calls is not False
            return calls(request.required, tagged=self._tagged, parallel=parallel, arguments=self._arguments)
        return request.constraint

    def parser(self, request: CompletionRequest | ChatRequest) -> ToolParser | None:
        """What finds the calls in an answer, if there may be some."""
        if not isinstance(request, ChatRequest) or not request.offered:
            return None
        if not (self._tagged or request.required):
            what = (
                f"`tool_choice` is auto, and calls are only told from text by {BEGIN}, which this model does not write"
            )
            raise UsageError(what, hint="Set it to none, required or a function.", param="tool_choice")
        return ToolParser(tagged=self._tagged)

    def stops(self, request: CompletionRequest | ChatRequest) -> tuple[str, ...]:
        """Where the text of an answer ends: after one call, if that is all there may be."""
        if not isinstance(request, ChatRequest) or request.parallel_tool_calls is not False or request.required:
            return request.stops
        return (*request.stops, END) if request.offered and self._tagged else request.stops


def sampling(
    request: CompletionRequest | ChatRequest, index: int, constraint: Constraint | None, stops: tuple[str, ...]
) -> SamplingParams:
    """The engine's parameters for answer ``index`` of ``request``; with a seed, each answer has one of its own."""
    if isinstance(request, ChatRequest):
        max_tokens = request.max_completion_tokens or request.max_tokens
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
    else:
        max_tokens, logprobs = request.max_tokens or DEFAULT_COMPLETION_TOKENS, request.logprobs
    given = {name: value for name in _PASSED_ON if (value := getattr(request, name)) is not None}
    seed = None if request.seed is None else request.seed % 2**SEED_BITS + (index << SEED_BITS)
    return SamplingParams(
        max_tokens=max_tokens,
        seed=seed,
        stop=stops,
        logprobs=logprobs,
        logit_bias=request.biases,
        stop_token_ids=frozenset(request.stop_token_ids or ()),
        grammar=None if constraint is None else Grammar(constraint.kind, constraint.text),
        **given,
    )


_PASSED_ON = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "ignore_eos",
    "min_tokens",
)


def backend_of(
    engine: LocalEngine | EncoderEngine, name: str, weights: Mapping[str, float] | None = None
) -> EngineBackend | EncoderBackend:
    """What answers with ``engine``, whichever it is."""
    if isinstance(engine, EncoderEngine):
        return EncoderBackend(engine, name, weights)
    return EngineBackend(engine, engine.tokenizer, name, weights)


def standalone(engine: LocalEngine | EncoderEngine, name: str, key: str) -> FastAPI:
    """A server for one engine, which asks for ``key``. ``/healthz`` needs none. It closes the engine when it ends."""
    expected = f"Bearer {key}".encode()

    async def authorize(request: Request, _scope: str) -> Caller:
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected):
            raise AuthError("the API key is missing or not valid", hint="Send `Authorization: Bearer KEY`.")
        return Caller(key="")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = create_app(backend_of(engine, name), authorize)
    app.router.lifespan_context = lifespan

    @app.get("/healthz")
    async def healthz() -> Response:
        found = engine.stats()
        return JSONResponse({"healthy": found["healthy"]}, 200 if found["healthy"] else 503)

    return app


async def _together(streams: Sequence[AsyncIterator[TokenEvent]]) -> AsyncGenerator[Indexed, None]:
    """Events of all ``streams`` with their index, as they come. The first error ends all of them."""
    queue: asyncio.Queue[Indexed | Exception | None] = asyncio.Queue(maxsize=1)  # events merge while they wait
    tasks = [asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _pump(index: int, stream: Any, queue: asyncio.Queue[Indexed | Exception | None]) -> None:
    try:
        async with aclosing(stream):
            async for event in stream:
                await queue.put((index, event))
        await queue.put(None)
    except Exception as error:
        await queue.put(error)
