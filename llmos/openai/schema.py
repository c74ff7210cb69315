"""Requests as OpenAI's clients send them (https://platform.openai.com/docs/api-reference).

Three kinds of fields: those that do something; those that change nothing here, such as ``user``, which are accepted;
and those that would change the answer but are not supported, which are refused unless they ask for nothing
(``functions: []``). Unknown fields are refused: nothing is ever ignored silently.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from llmos.openai.structure import Constraint, ResponseFormat, StructuredOutputs
from llmos.openai.tools import MAX_TOOLS, EarlierCall, Tool
from llmos.openai.wire import Hint, Unsupported, Wire

MAX_CHOICES = 128
MAX_STOPS, MAX_STOP_CHARS = 16, 256
MAX_BIASES, MAX_BIAS, MAX_STOP_TOKENS = 1024, 100, 128
SEED_BITS = 64

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]


class StreamOptions(Wire):
    """What a stream has besides text."""

    include_usage: bool = Field(default=False, description="a last chunk with the token counts")
    include_obfuscation: Hint


class Request(Wire):
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
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=10, description="not OpenAI's")
    ignore_eos: bool = Field(default=False, description="go on after the end; not OpenAI's")
    logit_bias: dict[str, Bias] | None = Field(
        default=None, max_length=MAX_BIASES, description="token: what is added to its logit"
    )
    min_tokens: int | None = Field(default=None, ge=0, description="no end before; not OpenAI's")
    stop_token_ids: list[int] | None = Field(
        default=None, max_length=MAX_STOP_TOKENS, description="tokens that end the answer too; not OpenAI's"
    )
    priority: int = Field(default=0, ge=-100, le=0, description="below 0: after the requests of others; not OpenAI's")
    deadline_s: float | None = Field(
        default=None, gt=0, le=86400, description="seconds after which an answer is of no use; not OpenAI's"
    )
    structured_outputs: StructuredOutputs | None = Field(default=None, description="vLLM's, not OpenAI's")
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

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """(token, what is added to its logit)."""
        return tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items())

    @property
    def constraint(self) -> Constraint | None:
        """The grammar that answers obey."""
        return None if self.structured_outputs is None else self.structured_outputs.constraint

    @field_validator("logit_bias")
    @classmethod
    def _numbered(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token in value or {}:
            if not (token.isascii() and token.isdigit()) or str(int(token)) != token:
                raise ValueError(f"names a token `{token[:100]}`: expected its number")
        return value

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
        if not (all_of(str, parts) or all_of(int, value) or all(all_of(int, part) for part in parts)):
            raise ValueError("expected a text, texts, tokens or lists of tokens, and at least one")
        return value

    @field_validator("prompt")
    @classmethod
    def _not_too_many(cls, value: Any, info: ValidationInfo) -> Any:
        count = len(value) if isinstance(value, list) and not all_of(int, value) else 1
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


class Message(Wire):
    """One turn of a chat. Parts of a content are joined. Only a turn that calls tools may be without content."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[EarlierCall] | None = None
    tool_call_id: str | None = Field(default=None, validate_default=True, description="which call a tool answers")
    content: str | list[dict[str, Any]] | None = Field(default=None, validate_default=True)
    name: Hint
    refusal: Hint
    audio: Unsupported
    function_call: Unsupported

    @field_validator("tool_calls")
    @classmethod
    def _of_assistants(cls, value: list[EarlierCall] | None, info: ValidationInfo) -> list[EarlierCall] | None:
        if value and info.data.get("role") != "assistant":
            raise ValueError("is only for the role `assistant`")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _of_tools(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is not None) != (info.data.get("role") == "tool"):
            raise ValueError("is missing" if value is None else "is only for the role `tool`")
        return value

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not info.data.get("tool_calls"):
            raise ValueError("is missing")
        if not isinstance(value, list):
            return value
        for part in value:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise ValueError('has a part that is no text: expected {"type": "text", "text": …}')
        return "".join(part["text"] for part in value)

    @property
    def plain(self) -> dict[str, Any]:
        """What chat templates know: developers are the system's, as OpenAI says of its own models."""
        found: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        if self.tool_calls:
            found["tool_calls"] = [call.plain for call in self.tool_calls]
        return found if self.tool_call_id is None else {**found, "tool_call_id": self.tool_call_id}


class ChatRequest(Request):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1, description="the newer name of `max_tokens`")
    logprobs: bool | None = Field(default=None, description="report how likely each token was")
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description="and how likely its alternatives")
    response_format: ResponseFormat | None = Field(default=None, description="text, or JSON that obeys a schema")
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS, description="what the model may call")
    tool_choice: Any = Field(default=None, description="none, auto, required, or the function that must be called")
    parallel_tool_calls: bool | None = Field(default=None, description="false: one call at most")
    audio: Unsupported
    function_call: Unsupported
    functions: Unsupported
    modalities: Unsupported
    prediction: Unsupported
    reasoning_effort: Unsupported
    verbosity: Unsupported
    web_search_options: Unsupported

    @property
    def constraint(self) -> Constraint | None:
        """The grammar that answers obey; calls of tools are another matter."""
        return super().constraint or (self.response_format.constraint if self.response_format is not None else None)

    @property
    def offered(self) -> list[Tool]:
        """The tools the model may call: none if it must not."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def required(self) -> list[Tool]:
        """The tools of which the model must call one."""
        if isinstance(self.tool_choice, dict):
            return [tool for tool in self.offered if tool.function.name == self.tool_choice["function"]["name"]]
        return self.offered if self.tool_choice == "required" else []

    @field_validator("response_format")
    @classmethod
    def _one_form(cls, value: ResponseFormat | None, info: ValidationInfo) -> ResponseFormat | None:
        if value is not None and value.constraint is not None and info.data.get("structured_outputs") is not None:
            raise ValueError("is not for a request with `structured_outputs`")
        return value

    @field_validator("tools")
    @classmethod
    def _distinct(cls, value: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in value or []]
        if len(set(names)) < len(names):
            raise ValueError("has two functions of one name")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _possible(cls, value: Any, info: ValidationInfo) -> Any:
        if value in (None, "none", "auto"):
            return value
        names = {tool.function.name for tool in info.data.get("tools") or []}
        named = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
        name = named.get("name") if isinstance(named, dict) else None
        if value != "required" and not isinstance(name, str):
            raise ValueError('is none of none, auto, required and {"type": "function", "function": {"name": …}}')
        if not names or (name is not None and name not in names):
            raise ValueError(f"names no function of `tools`: expected one of {', '.join(sorted(names)) or 'some'}")
        form = info.data.get("response_format")
        if info.data.get("structured_outputs") is not None or (form is not None and form.constraint is not None):
            raise ValueError("is not for a request whose answers have a form already")
        return value

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


def all_of(kind: type, values: Any) -> bool:
    """Whether ``values`` is a list with something in it, all of it of ``kind`` itself."""
    return isinstance(values, list) and bool(values) and all(type(value) is kind for value in values)
