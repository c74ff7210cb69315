"""The server that is tested: the one without Ray, with a tiny model under several names, and a store.

``POST /seed`` puts in the models and the stored chat that OpenAI's tests name, again before each of them; without it
they are not there. Answers are short: a model without sense does not know when to stop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from fastapi import FastAPI, Request, Response

from llmos.control.store.completions import Completions
from llmos.control.store.database import Database
from llmos.embedding import EncoderBackend
from llmos.errors import AuthError
from llmos.infer.encoder import EncoderEngine
from llmos.infer.local import LocalEngine
from llmos.models import train_bpe, weights
from llmos.openai.caller import Caller
from llmos.openai.embeddings import EmbeddingRequest
from llmos.openai.errors import unknown_model
from llmos.openai.replies import ModelCard, model_card
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.server import create_app
from llmos.openai.tokens import DetokenizeRequest, TokenizeRequest
from llmos.serving import EngineBackend, StoredHere
from tests.unit.infer.small import CODE
from tests.unit.models.small import make

KEY = "My API Key"  # what OpenAI's tests send
MODEL, ENCODER = "small", "encoder"
CHATS = ("gpt-5.4", "gpt-3.5-turbo-instruct", "gpt-4o-mini", "ft:gpt-4o-mini:acemeco:suffix:abc123")
ENCODERS = ("text-embedding-3-small",)
STORED = "completion_id"
CONTEXT, LONGEST = 1024, 48

TEMPLATE = (
    "{% if tools %}<|im_start|>system\nCalled as <tool_call></tool_call>: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(directory: Path) -> Path:
    """A random model with room for a chat with tools."""
    tokenizer = train_bpe([CODE, '{"name": "function", "arguments": {"type": "object"}} ' * 9], vocab_size=400)
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    weights.save_model(make(vocab_size=tokenizer.vocab_size, max_position=CONTEXT, **ends), directory)
    tokenizer.save(directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


class Models:
    """One engine and one encoder under many names."""

    def __init__(self, engine: LocalEngine, encoder: EncoderEngine) -> None:
        self._backends: dict[str, EngineBackend | EncoderBackend] = {
            **{name: EngineBackend(engine, engine.tokenizer, name) for name in (MODEL, *CHATS)},
            **{name: EncoderBackend(encoder, name) for name in (ENCODER, *ENCODERS)},
        }
        self.cards = {name: model_card(name, 1_700_000_000) for name in (MODEL, ENCODER)}

    async def models(self) -> Sequence[ModelCard]:
        return list(self.cards.values())

    async def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        if request.constraint is None and not (isinstance(request, ChatRequest) and request.required):
            longest = LONGEST if request.limit is None else min(request.limit, LONGEST)
            fields = ("max_tokens", "max_completion_tokens") if isinstance(request, ChatRequest) else ("max_tokens",)
            request = request.model_copy(update=dict.fromkeys(fields, longest))
        async for piece in self._backend(request.model).answer(request, caller):
            yield piece

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> bytes:
        return await self._backend(request.model).embed(request, caller)

    async def tokenize(self, request: TokenizeRequest, caller: Caller) -> bytes:
        return await self._backend(request.model).tokenize(request, caller)

    async def detokenize(self, request: DetokenizeRequest, caller: Caller) -> bytes:
        return await self._backend(request.model).detokenize(request, caller)

    def _backend(self, model: str) -> EngineBackend | EncoderBackend:
        if model not in self.cards or model not in self._backends:
            raise unknown_model(model, self.cards)
        return self._backends[model]

    async def remove(self, model: str, authorization: str | None) -> None:
        del self.cards[model]


def conformance_app(engine: LocalEngine, encoder: EncoderEngine, store: Path) -> FastAPI:
    """The server over ``engine`` and ``encoder``; chats are kept in ``store``."""
    models, completions = Models(engine, encoder), Completions(Database(store), kept=100)

    async def authorize(request: Request, _scope: str) -> Caller:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            raise AuthError("the API key is not valid")
        return Caller("conformance")

    app = create_app(models, authorize, stored=StoredHere(completions))

    @app.post("/seed", include_in_schema=False)
    async def seed() -> Response:
        models.cards |= {name: model_card(name, 1_700_000_000) for name in (MODEL, ENCODER, *CHATS, *ENCODERS)}
        message = {"role": "assistant", "content": "Walk.", "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        chat = {"id": STORED, "object": "chat.completion", "created": 1_700_000_000, "model": CHATS[0]}
        asked = [{"role": "user", "content": "Walk?", "name": None}]
        completions.add("", {**chat, "choices": [choice], "metadata": {"foo": "string"}}, asked)
        return Response(status_code=204)

    return app
