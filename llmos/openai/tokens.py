"""``POST /v1/tokenize`` and ``/v1/detokenize``, which OpenAI does not have: the fields are those of vLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from llmos.openai.message import Message
from llmos.openai.sse import encode
from llmos.openai.tools import MAX_TOOLS, Tool
from llmos.openai.wire import Wire

MAX_TOKENS = 2**20


class TokenizeRequest(Wire):
    """A text, or a chat as the model would read it."""

    model: str = Field(description="a served model")
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=4096, description="a chat")
    prompt: str | None = Field(default=None, validate_default=True, description="a text: instead of a chat")
    add_special_tokens: bool = Field(default=True, description="with what stands around a text, such as a first token")
    add_generation_prompt: bool = Field(default=True, description="with the beginning of the answer to a chat")
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS, description="of a chat")
    return_token_strs: bool | None = Field(default=None, description="also how each token is spelled")

    @field_validator("prompt")
    @classmethod
    def _one_of_two(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is None) == (info.data.get("messages") is None):
            raise ValueError("is missing" if value is None else "is not for a request with `messages`")
        return value


class DetokenizeRequest(Wire):
    """Tokens whose text is wanted."""

    model: str = Field(description="a served model")
    tokens: list[int] = Field(max_length=MAX_TOKENS, description="their numbers")

    @field_validator("tokens")
    @classmethod
    def _numbered(cls, value: list[int]) -> list[int]:
        if wrong := next((token for token in value if not 0 <= token < 2**31), None):
            raise ValueError(f"has the number {wrong}: expected those of tokens")
        return value


def tokens_reply(tokens: Sequence[int], context_length: int | None, spelled: Sequence[str] | None) -> bytes:
    """The answer to a :class:`TokenizeRequest`."""
    found: dict[str, Any] = {"count": len(tokens), "max_model_len": context_length, "tokens": list(tokens)}
    return encode({**found, "token_strs": None if spelled is None else list(spelled)})


def text_reply(text: str) -> bytes:
    """The answer to a :class:`DetokenizeRequest`."""
    return encode({"prompt": text})
