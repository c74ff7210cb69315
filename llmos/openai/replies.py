"""Answers as OpenAI's clients read them, whole and in chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import urandom
from typing import Any, Protocol

from typing_extensions import TypedDict

from llmos.openai.calls import CallDelta, joined
from llmos.openai.request import TIERS
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.sse import DONE, encode, sse


class PromptDetails(TypedDict):
    """``cached_tokens`` of a prompt were in the key-value cache, and were not computed again."""

    cached_tokens: int


class Usage(TypedDict):
    """Tokens; a prompt counts once, however many answers it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ModelCard(TypedDict):
    """A served model."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(TypedDict):
    object: str
    data: list[ModelCard]


class ModelDeleted(TypedDict):
    """A model that is served no more."""

    id: str
    object: str
    deleted: bool


@dataclass(frozen=True, slots=True)
class Token:
    """A token and how likely it was; ``top`` holds its alternatives."""

    spelling: bytes
    logprob: float
    top: tuple[Token, ...] = ()

    @property
    def text(self) -> str:
        """As OpenAI shows it: bytes that are no character of their own are spelled out."""
        try:
            return self.spelling.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.spelling)


@dataclass(frozen=True, slots=True)
class Piece:
    """More of one answer, or all of it. ``tokens`` is None unless logprobs were asked for; chats have ``calls``.

    The first ``echoed`` characters of the text are the prompt's.
    """

    text: str
    tokens: tuple[Token, ...] | None = None
    finish_reason: str | None = None
    calls: tuple[CallDelta, ...] = ()
    echoed: int = 0


class Reply(Protocol):
    """Writes the answer to one request."""

    id: str

    def chunk(self, index: int, piece: Piece) -> bytes:
        """Server-sent events with more of answer ``index``; none if there is nothing to show."""
        ...

    def end(self, usage: Usage) -> bytes:
        """What a stream ends with."""
        ...

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        """The JSON of all answers at once."""
        ...


class CompletionReply:
    """``/v1/completions``."""

    def __init__(self, request: CompletionRequest) -> None:
        self.id = f"cmpl-{new_id()}"
        self._head = {"id": self.id, "object": "text_completion", "created": int(time.time()), "model": request.model}
        self._usage = request.include_usage
        self._offsets: dict[int, int] = {}

    def chunk(self, index: int, piece: Piece) -> bytes:
        if not (piece.text or piece.tokens or piece.finish_reason):
            return b""
        return sse(_with_usage({**self._head, "choices": [self._choice(index, piece)]}, self._usage, None))

    def end(self, usage: Usage) -> bytes:
        return _end(self._head, self._usage, usage)

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        choices = [self._choice(index, piece) for index, piece in enumerate(pieces)]
        return encode({**self._head, "choices": choices, "usage": usage})

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        self._offsets.setdefault(index, piece.echoed)
        logprobs = None if piece.tokens is None else self._logprobs(index, piece.tokens)
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        texts, offsets = [token.text for token in tokens], []
        for text in texts:
            offsets.append(self._offsets[index])
            self._offsets[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{other.text: other.logprob for other in token.top} for token in tokens],
            "text_offset": offsets,
        }


class ChatReply:
    """``/v1/chat/completions``."""

    def __init__(self, request: ChatRequest) -> None:
        self.id = f"chatcmpl-{new_id()}"
        self._head: dict[str, Any] = {"id": self.id, "created": int(time.time()), "model": request.model}
        if request.service_tier is not None:
            self._head["service_tier"] = TIERS[request.service_tier][0]
        self._usage = request.include_usage
        self._begun: set[int] = set()

    def chunk(self, index: int, piece: Piece) -> bytes:
        events = b"" if index in self._begun else self._event(index, {"role": "assistant", "content": ""}, None, None)
        self._begun.add(index)
        if piece.text or piece.tokens:
            events += self._event(index, {"content": piece.text}, _chat_logprobs(piece.tokens), None)
        for call in piece.calls:
            events += self._event(index, {"tool_calls": [call.wire]}, None, None)
        return events + (self._event(index, {}, None, piece.finish_reason) if piece.finish_reason else b"")

    def end(self, usage: Usage) -> bytes:
        return _end({**self._head, "object": "chat.completion.chunk"}, self._usage, usage)

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        choices = [
            {
                "index": index,
                "message": _message(piece),
                "logprobs": _chat_logprobs(piece.tokens),
                "finish_reason": piece.finish_reason,
            }
            for index, piece in enumerate(pieces)
        ]
        return encode({**self._head, "object": "chat.completion", "choices": choices, "usage": usage})

    def _event(self, index: int, delta: dict[str, Any], logprobs: Any, reason: str | None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        event = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return sse(_with_usage(event, self._usage, None))


def new_id() -> str:
    """A name that no other answer has. Later names are larger, to the millisecond, so that lists have an order."""
    return f"{time.time_ns() // 10**6:012x}{urandom(10).hex()}"


def reply_to(request: CompletionRequest | ChatRequest) -> Reply:
    """Who writes the answer to ``request``."""
    return ChatReply(request) if isinstance(request, ChatRequest) else CompletionReply(request)


def model_card(name: str, created: int) -> ModelCard:
    """A served model; ``created`` is in seconds since 1970."""
    return {"id": name, "object": "model", "created": created, "owned_by": "llmos"}


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> Usage:
    """Both counts and their sum; ``cached_tokens`` are those of the prompt that were not computed again."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def _message(piece: Piece) -> dict[str, Any]:
    if not piece.calls:
        return {"role": "assistant", "content": piece.text, "refusal": None}
    called = [{name: value for name, value in call.wire.items() if name != "index"} for call in joined(piece.calls)]
    return {"role": "assistant", "content": piece.text or None, "refusal": None, "tool_calls": called}


def _chat_logprobs(tokens: Sequence[Token] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {
        "content": [{**_spelled(token), "top_logprobs": [_spelled(other) for other in token.top]} for token in tokens],
        "refusal": None,
    }


def _spelled(token: Token) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.spelling)}


def _with_usage(event: dict[str, Any], asked: bool, found: Usage | None) -> dict[str, Any]:
    """Who asks for usage gets the field in every chunk, null but in the last."""
    return {**event, "usage": found} if asked else event


def _end(head: dict[str, Any], asked: bool, found: Usage) -> bytes:
    return (sse({**head, "choices": [], "usage": found}) if asked else b"") + DONE
