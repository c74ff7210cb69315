"""What requests for completions and chats have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from llmos.openai.structure import Constraint, StructuredOutputs
from llmos.openai.wire import Hint, Wire

MAX_CHOICES = 128
MAX_STOPS, MAX_STOP_CHARS = 16, 256
MAX_BIASES, MAX_BIAS, MAX_STOP_TOKENS = 1024, 100, 128
SEED_BITS = 64
MAX_USER_CHARS = 256
MAX_LABELS, MAX_LABEL_KEY, MAX_LABEL = 16, 64, 512  # OpenAI's

TIERS: Mapping[str, tuple[str, int]] = {
    **dict.fromkeys(("auto", "default", "scale", "priority", "fast"), ("default", 0)),
    "flex": ("flex", -1),
}
"""Each ``service_tier``: what the answer says was used, and its priority. No request goes before others on its word."""

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=MAX_LABEL_KEY)], Annotated[str, Field(max_length=MAX_LABEL)]],
    Field(max_length=MAX_LABELS),
]


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
    max_tokens: int | None = Field(default=None, ge=0, description="tokens of an answer, at most; 0 makes none")
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
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = Field(
        default=None, description="`flex`: after the requests of others; the other ones are the default"
    )
    user: str | None = Field(
        default=None, max_length=MAX_USER_CHARS, description="users of one key take turns while requests wait"
    )
    prompt_cache_key: str | None = Field(
        default=None, max_length=MAX_USER_CHARS, description="requests of one stay at one replica if they can"
    )
    moderation: Hint
    prompt_cache_options: Hint
    prompt_cache_retention: Hint
    safety_identifier: Hint

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def limit(self) -> int | None:
        """Tokens of an answer, at most; None if that was left open."""
        return self.max_tokens

    @property
    def level(self) -> int:
        """The priority: that of the field, or of the tier, whichever is lower."""
        return min(self.priority, TIERS[self.service_tier or "default"][1])

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """(token, what is added to its logit)."""
        return tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items() if bias)

    def ignored(self) -> set[str]:
        """Also what is said of a stream that was not asked for, and tiers that are no other than the default."""
        found = super().ignored()
        if self.stream_options is not None and not self.stream:
            found = {name for name in found if not name.startswith("stream_options.")} | {"stream_options"}
        return found | ({"service_tier"} if self.service_tier in ("scale", "priority", "fast") else set())

    @property
    def constraint(self) -> Constraint | None:
        """The grammar that answers obey."""
        return None if self.structured_outputs is None else self.structured_outputs.constraint

    @field_validator("logit_bias")
    @classmethod
    def _numbered(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (value or {}).items():
            if bias and not (token.isascii() and token.isdigit() and str(int(token)) == token):
                raise ValueError(f"names a token `{token[:100]}`: expected its number")
        return value
