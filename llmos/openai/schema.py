"""Requests as OpenAI's clients send them (https://platform.openai.com/docs/api-reference).

Three kinds of fields: those that do something; those that change nothing here, such as ``verbosity``, which are
accepted and named in the answer's header (``Wire.ignored``); and those whose answer would be of another kind, which are
refused unless they ask for nothing (``modalities: ["text"]``). Unknown fields are refused: nothing is ever ignored
silently.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from llmos.openai.message import Message
from llmos.openai.request import MAX_CHOICES, SEED_BITS, Metadata, Request
from llmos.openai.structure import Constraint, ResponseFormat
from llmos.openai.tools import MAX_TOOLS, Tool
from llmos.openai.wire import Hint, Unsupported, all_of

__all__ = ["SEED_BITS", "ChatRequest", "CompletionRequest", "Message", "all_of"]


class CompletionRequest(Request):
    """``POST /v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(description="text or tokens, one or several")
    logprobs: int | None = Field(default=None, ge=0, le=5, description="alternatives reported for each token")
    echo: bool | None = Field(default=None, description="begin the answer with the prompt")
    best_of: int | None = Field(default=None, ge=0, description="supported only if it equals `n`, or is 0")
    suffix: Hint
    store: Unsupported
    metadata: Hint

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
        if value and info.data.get("logprobs"):
            raise ValueError("is not supported together with `logprobs` above 0: a prompt's are not computed")
        return value

    @field_validator("best_of")
    @classmethod
    def _best_of_n(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and value != (info.data.get("n") or 1):
            raise ValueError("is supported only if it equals `n`")
        return value


class ChatRequest(Request):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(default=None, ge=0, description="the newer name of `max_tokens`")
    logprobs: bool | None = Field(default=None, description="report how likely each token was")
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description="and how likely its alternatives")
    response_format: ResponseFormat | None = Field(default=None, description="text, or JSON that obeys a schema")
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS, description="what the model may call")
    tool_choice: Any = Field(default=None, description="none, auto, required, or the function that must be called")
    parallel_tool_calls: bool | None = Field(default=None, description="false: one call at most")
    store: bool | None = Field(default=None, description="keep the answer, if the tenant has storage")
    metadata: Metadata | None = Field(default=None, description="labels of a stored answer")
    function_call: Unsupported
    functions: list[dict[str, Any]] | None = Field(default=None, description='only with `"function_call": "none"`')
    modalities: Unsupported
    audio: Hint
    prediction: Hint
    reasoning_effort: Hint
    verbosity: Hint
    web_search_options: Hint

    @property
    def limit(self) -> int | None:
        """Tokens of an answer, at most; None if that was left open."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def ignored(self) -> set[str]:
        """Also functions that must not be called."""
        return super().ignored() | ({"functions"} if self.functions else set())

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

    @field_validator("functions")
    @classmethod
    def _uncalled(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("function_call") != "none":
            raise ValueError("is what `tools` was called before: use that")
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
