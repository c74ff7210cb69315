"""An encoder behind OpenAI's API: ``/v1/embeddings`` of a replica, and of the server without Ray."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence

from llmos.errors import LlmosError, UsageError
from llmos.infer.encoder import EncoderEngine
from llmos.infer.encoder_messages import EmbedRequest, Text
from llmos.openai.caller import Caller
from llmos.openai.embeddings import EmbeddingRequest, embedding_reply
from llmos.openai.errors import unknown_model
from llmos.openai.replies import ModelCard, model_card
from llmos.openai.schema import ChatRequest, CompletionRequest


class EncoderBackend:
    """Answers OpenAI requests (``openai.server.OpenAIBackend``) for one encoder, ``name``, with ``engine``.

    ``weights`` are keys' shares of the tokens while requests wait; others' are 1.
    """

    def __init__(self, engine: EncoderEngine, name: str, weights: Mapping[str, float] | None = None) -> None:
        self._engine, self._weights = engine, weights or {}
        self._card = model_card(name, int(time.time()))

    async def models(self) -> Sequence[ModelCard]:
        """The one model."""
        return [self._card]

    def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        """Raises UsageError with the first piece: an encoder writes nothing."""
        if request.model != self._card["id"]:
            return _refused(unknown_model(request.model, [self._card["id"]]))
        what = f"`{request.model}` is an encoder: it makes embeddings and generates no text"
        return _refused(UsageError(what, hint="Use /v1/embeddings, or another model.", param="model"))

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> bytes:
        """The vectors of the inputs. Being cancelled, it cancels the request. Raises what the engine raises."""
        if request.model != self._card["id"]:
            raise unknown_model(request.model, [self._card["id"]])
        self._check_dimensions(request)
        texts = await asyncio.to_thread(self.texts, request)
        who = caller.key, request.priority, self._weights.get(caller.key, 1.0), request.deadline_s
        vectors_ND = await self._engine.embed(EmbedRequest(f"embd-{uuid.uuid4().hex}", texts, *who))
        tokens = sum(map(len, texts))
        return await asyncio.to_thread(embedding_reply, request, vectors_ND, tokens)

    def texts(self, request: EmbeddingRequest) -> tuple[Text, ...]:
        """The tokens of each input, with those around it; tokens are taken as they are."""
        longest = self._engine.context_length if request.truncate else None
        written = [one for one in request.inputs if isinstance(one, str)]
        encoded = iter(self._engine.tokenizer.encode(written, longest))
        return tuple(next(encoded) if isinstance(one, str) else tuple(one[:longest]) for one in request.inputs)

    def _check_dimensions(self, request: EmbeddingRequest) -> None:
        width, asked = self._engine.config.hidden_size, request.dimensions
        if asked is None or asked == width:
            return
        if asked > width or not self._engine.config.nested:
            few = f"1 to {width}" if self._engine.config.nested else f"{width}, for its vectors cannot be shortened"
            what = f"`dimensions` is {asked}: `{request.model}` has {few}"
            raise UsageError(what, hint="Leave it out.", param="dimensions")


async def _refused(error: LlmosError, pieces: Sequence[bytes] = ()) -> AsyncGenerator[bytes, None]:
    """``pieces``, then ``error``."""
    for piece in pieces:
        yield piece
    raise error
