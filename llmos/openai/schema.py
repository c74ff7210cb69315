"""Requests as OpenAI's clients send them (https://platform.openai.com/docs/api-reference).

Three kinds of fields: those that do something; those that change nothing here, such as ``user``, which are accepted;
and those that would change the answer but are not supported, which are refused unless they ask for nothing
(``tools: []``). Unknown fields are refused: nothing is ever ignored silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

MAX_CHOICES = 128
MAX_STOPS, MAX_STOP_CHARS = 16, 256
SEED_BITS = 64

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_calls": (None, []),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
"""Fields that are not supported, and what they may say: the values that ask for nothing."""

Unsupported = Annotated[Any, Field(default=None, description="not supported: leave it out")]
Hint = Annotated[Any, Field(default=None, description="accepted; changes nothing")]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @field_validator(*_NEUTRAL, mode="before", check_fields=False)
    @classmethod
    def _refuse(cls, value: Any, info: ValidationInfo) -> Any:
        if value not in _NEUTRAL[str(info.field_name)]:
            raise ValueError("is not supported: leave it out")
        return value


class StreamOptions(_Wire):
    """What a stream has besides text."""

    include_usage: bool = Field(default=False, description="a last chunk with the token counts")
    include_obfuscation: Hint


class Request(_Wire):
    """What completions and chats have in common. Null means the default."""

    model: str = Field(description="a served model")
    stream: bool | None = Field(default=None, description="answer as server-sent events")
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES, description="answers per prompt")
    max_tokens: int | None = Field(default=None, ge=1, description="tokens of an answer, at most")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1, description="0 keeps the likeliest token only")
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**SEED_BITS, description="same seed, same answer")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    top_k: int | None = Field(default=None, ge=0, description="0 keeps every token; not OpenAI's")
    min_p: float | None = Field(default=None, ge=0, le=1, description="not OpenAI's")
    repetition_penalty: float | None = Field(default=None, gt=0, le=10, description="not OpenAI's")
    ignore_eos: bool = Field(default=False, description="go on after the end; not OpenAI's")
    logit_bias: Unsupported
    metadata: Hint
    prompt_cache_key: Hint
    safety_identifier: Hint
    service_tier: Hint
    store: Unsupported
    user: Hint

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @field_validator("stream_options")
    @classmethod
    def _only_streamed(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("is only for `stream: true`")
        return value


class CompletionRequest(Request):
    """``POST /v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(description="text or tokens, one or several")
    logprobs: int | None = Field(default=None, ge=0, le=5, description="alternatives reported for each token")
    echo: bool | None = Field(default=None, description="begin the answer with the prompt")
    best_of: int | None = Field(default=None, description="supported only if it equals `n`")
    suffix: Unsupported

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt: its text or its tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(token, int) for token in self.prompt):
            return [self.prompt]  # type: ignore[list-item]  # mypy does not narrow by the items
        return list(self.prompt)  # type: ignore[arg-type]

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        parts = value if isinstance(value, list) and value else [value]
        if not (_all(str, parts) or _all(int, value) or all(_all(int, part) for part in parts)):
            raise ValueError("expected a text, texts, tokens or lists of tokens, and at least one")
        return value

    @field_validator("prompt")
    @classmethod
    def _not_too_many(cls, value: Any, info: ValidationInfo) -> Any:
        count = len(value) if isinstance(value, list) and not _all(int, value) else 1
        if count * (info.data.get("n") or 1) > MAX_CHOICES:
            raise ValueError(f"asks for too many answers: expected at most {MAX_CHOICES}, prompts times `n`")
        return value

    @field_validator("echo")
    @classmethod
    def _echo_alone(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("logprobs") is not None:
            raise ValueError("is not supported together with `logprobs`")
        return value

    @field_validator("best_of")
    @classmethod
    def _best_of_n(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value != (info.data.get("n") or 1):
            raise ValueError("is supported only if it equals `n`")
        return value


class Message(_Wire):
    """One turn of a chat. Parts of a content are joined."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]
    name: Hint
    refusal: Hint
    audio: Unsupported
    function_call: Unsupported
    tool_calls: Unsupported

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        for part in value:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise ValueError('has a part that is no text: expected {"type": "text", "text": …}')
        return "".join(part["text"] for part in value)

    @property
    def plain(self) -> dict[str, str]:
        """What chat templates know: developers are the system's, as OpenAI says of its own models."""
        return {"role": "system" if self.role == "developer" else self.role, "content": str(self.content)}


class ChatRequest(Request):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1, description="the newer name of `max_tokens`")
    logprobs: bool | None = Field(default=None, description="report how likely each token was")
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description="and how likely its alternatives")
    parallel_tool_calls: Hint
    audio: Unsupported
    function_call: Unsupported
    functions: Unsupported
    modalities: Unsupported
    prediction: Unsupported
    reasoning_effort: Unsupported
    response_format: Unsupported
    tool_choice: Unsupported
    tools: Unsupported
    verbosity: Unsupported
    web_search_options: Unsupported

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if None not in (value, info.data.get("max_tokens")) and value != info.data["max_tokens"]:
            raise ValueError("differs from `max_tokens`: expected one of them")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("is only for `logprobs: true`")
        return value


def _all(kind: type, values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) is kind for value in values)
