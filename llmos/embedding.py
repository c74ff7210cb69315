"""An encoder behind OpenAI's API: ``/v1/embeddings`` of a replica, and of the server without Ray."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence

from llmos.errors import LlmosError, UsageError
from llmos.front.witness import Witness
from llmos.infer.encoder import EncoderEngine
from llmos.infer.encoder_messages import EmbedRequest, Text
from llmos.one_model import OneModel
from llmos.openai.caller import Caller
from llmos.openai.embeddings import EmbeddingRequest, embedding_reply
from llmos.openai.errors import unknown_model
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.tokens import DetokenizeRequest, TokenizeRequest, text_reply, tokens_reply
from llmos.usage import Tokens


class EncoderBackend(OneModel):
    """Answers OpenAI requests (``openai.server.OpenAIBackend``) for one encoder, ``name``, with ``engine``.

    ``weights`` are keys' shares of the tokens while requests wait; others' are 1. A ``witness`` is told of every
    request that was computed.
    """

    def __init__(
        self,
        engine: EncoderEngine,
        name: str,
        weights: Mapping[str, float] | None = None,
        witness: Witness | None = None,
    ) -> None:
        super().__init__(name)
        self._engine, self._weights, self._witness = engine, weights or {}, witness

    def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        """Raises UsageError with the first piece: an encoder writes nothing."""
        if request.model != self._card["id"]:
            return _refused(unknown_model(request.model, [self._card["id"]]))
        what = f"`{request.model}` is an encoder: it makes embeddings and generates no text"
        return _refused(UsageError(what, hint="Use /v1/embeddings, or another model.", param="model"))

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> bytes:
        """The vectors of the inputs. Being cancelled, it cancels the request. Raises what the engine raises."""
        self.check(request.model)
        self._check_dimensions(request)
        texts = await asyncio.to_thread(self.texts, request)
        who = caller.key, request.user or "", request.priority, self._weights.get(caller.key, 1.0), request.deadline_s
        vectors_ND = await self._engine.embed(EmbedRequest(f"embd-{uuid.uuid4().hex}", texts, *who))
        tokens = sum(map(len, texts))
        if self._witness is not None:
            self._witness.ended(caller, Tokens(tokens), 200)
        return await asyncio.to_thread(embedding_reply, request, vectors_ND, tokens)

    async def tokenize(self, request: TokenizeRequest, caller: Caller) -> bytes:
        """The tokens of a text, as the encoder gets them. Raises UsageError for a chat."""
        self.check(request.model)
        if request.prompt is None:
            what = f"`{request.model}` is an encoder, which reads no chats"
            raise UsageError(what, hint="Send `prompt`.", param="messages")
        return await asyncio.to_thread(self._tokens_reply, request, request.prompt)

    async def detokenize(self, request: DetokenizeRequest, caller: Caller) -> bytes:
        """The text of tokens; control tokens are spelled out. Raises UsageError for what is no token."""
        self.check(request.model)
        size = self._engine.tokenizer.vocab_size
        if wrong := next((token for token in request.tokens if token >= size), None):
            raise UsageError(f"`tokens` has {wrong}: expected 0 to {size - 1}", param="tokens")
        return text_reply(await asyncio.to_thread(self._engine.tokenizer.decode, request.tokens))

    def texts(self, request: EmbeddingRequest) -> tuple[Text, ...]:
        """The tokens of each input, with those around it; tokens are taken as they are."""
        longest = self._engine.context_length if request.truncate else None
        written = [one for one in request.inputs if isinstance(one, str)]
        encoded = iter(self._engine.tokenizer.encode(written, longest))
        return tuple(next(encoded) if isinstance(one, str) else tuple(one[:longest]) for one in request.inputs)

    def _tokens_reply(self, request: TokenizeRequest, text: str) -> bytes:
        tokenizer = self._engine.tokenizer
        tokens = tokenizer.tokens(text, request.add_special_tokens)
        spelled = [tokenizer.spelling(token) for token in tokens] if request.return_token_strs else None
        return tokens_reply(tokens, self._engine.context_length, spelled)

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
