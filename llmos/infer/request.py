"""What an engine is asked and what it answers. Plain values: no torch, and they can be pickled."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from llmos.errors import UsageError

SEED_BITS = 128
MAX_LOGPROBS = 20
MAX_STOPS, MAX_STOP_CHARS = 16, 256
MAX_BIASES, MAX_BIAS, MAX_STOP_TOKENS = 1024, 100.0, 128
MAX_GRAMMAR_CHARS = 256 * 1024
REPETITION = 0.01, 100.0
"""The least and the largest ``repetition_penalty``: what is far beyond leaves the range of float32."""
FinishReason = str
"""``stop``: a stop string or an end token. ``length``: no more tokens allowed, by the request or by the context."""


GrammarKind = Literal["json_schema", "json_object", "choice", "regex", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like; `llmos.infer.grammar` compiles it.

    ``text`` by ``kind``: a JSON schema; nothing, for any JSON object; a JSON list of the texts to choose from; a
    regular expression (Rust's syntax) for the whole answer; a grammar in Lark's syntax, which may name control tokens.
    """

    kind: GrammarKind
    text: str = ""

    def __post_init__(self) -> None:
        fits = len(self.text) <= MAX_GRAMMAR_CHARS
        _check("grammar", f"{len(self.text)} characters long", fits, f"at most {MAX_GRAMMAR_CHARS}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen, and when to stop. Raises UsageError, which names the field.

    ``max_tokens`` None is what the context leaves. ``temperature`` 0 always takes the likeliest token. ``top_k`` 0,
    ``top_p`` 1 and ``min_p`` 0 keep every token; ``min_p`` drops those less likely than that share of the likeliest.
    ``repetition_penalty`` counts the prompt too, ``frequency_penalty`` and ``presence_penalty`` only the answer.
    ``seed`` fixes the answer: with None it is drawn. ``logprobs`` is how many alternatives to report for each token;
    0 reports the token itself, None nothing. ``logit_bias`` has (token, what is added to its logit). No end token and
    none of ``stop_token_ids``, which end an answer too, comes before ``min_tokens``. The text of an answer spells the
    control tokens that are ``shown_tokens``. What obeys a ``grammar`` ends where the grammar does, so neither
    ``min_tokens`` nor ``ignore_eos`` goes with one.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    shown_tokens: frozenset[int] = frozenset()
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        _check("temperature", self.temperature, 0 <= self.temperature <= 100, "0 to 100")
        _check("top_k", self.top_k, self.top_k >= 0, "at least 0, which keeps every token")
        _check("top_p", self.top_p, 0 <= self.top_p <= 1, "0 to 1")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1")
        least, most = REPETITION
        _check(
            "repetition_penalty",
            self.repetition_penalty,
            least <= self.repetition_penalty <= most,
            f"{least:g} to {most:g}",
        )
        for name in ("frequency_penalty", "presence_penalty"):
            _check(name, getattr(self, name), -2 <= getattr(self, name) <= 2, "-2 to 2")
        _check("seed", self.seed, self.seed is None or 0 <= self.seed < 2**SEED_BITS, f"0 to 2^{SEED_BITS} - 1")
        fit = len(self.stop) <= MAX_STOPS and all(0 < len(stop) <= MAX_STOP_CHARS for stop in self.stop)
        expected = f"at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters"
        _check("stop", f"{len(self.stop)} strings", fit, expected)
        enough = self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS
        _check("logprobs", self.logprobs, enough, f"0 to {MAX_LOGPROBS}")
        self._check_tokens()

    def _check_tokens(self) -> None:
        fit = len(self.logit_bias) <= MAX_BIASES and all(abs(bias) <= MAX_BIAS for _, bias in self.logit_bias)
        expected = f"at most {MAX_BIASES} of them, each -{MAX_BIAS:g} to {MAX_BIAS:g}"
        _check("logit_bias", f"{len(self.logit_bias)} biases", fit, expected)
        twice = len({token for token, _ in self.logit_bias}) < len(self.logit_bias)
        _check("logit_bias", "one that names a token twice", not twice, "each token once")
        fit = len(self.stop_token_ids) <= MAX_STOP_TOKENS
        _check("stop_token_ids", f"{len(self.stop_token_ids)} tokens", fit, f"at most {MAX_STOP_TOKENS}")
        longest = math.inf if self.max_tokens is None else self.max_tokens
        _check("min_tokens", self.min_tokens, 0 <= self.min_tokens <= longest, "0 to `max_tokens`")
        if self.grammar is not None:
            _check("min_tokens", self.min_tokens, self.min_tokens == 0, "0 for an answer with a grammar")
            _check("ignore_eos", self.ignore_eos, not self.ignore_eos, "false for an answer with a grammar")

    def check_vocabulary(self, size: int) -> None:
        """Raises UsageError for a token that a vocabulary of ``size`` tokens does not have."""
        for name, tokens in (
            ("logit_bias", [token for token, _ in self.logit_bias]),
            ("stop_token_ids", list(self.stop_token_ids)),
        ):
            unknown = next((token for token in tokens if not 0 <= token < size), None)
            if unknown is not None:
                raise UsageError(f"`{name}` names token {unknown}: expected 0 to {size - 1}", param=name)

    def ends(self, model_ends: frozenset[int]) -> frozenset[int]:
        """The tokens that end this answer; ``model_ends`` end those of the model."""
        return self.stop_token_ids if self.ignore_eos else self.stop_token_ids | model_ends

    @property
    def penalized(self) -> bool:
        """Whether the choice depends on the tokens so far."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue. ``id`` is the caller's, unique among the requests an engine works on.

    ``tenant`` is who asks: waiting requests take turns between tenants, in the ratio of their ``weight``, then between
    the ``user`` s of one, and a tenant's prompts are found again in the prefix cache only by itself. Requests of a
    higher ``priority`` go first.
    ``deadline_s`` counts from submission; an answer that is not complete by then ends with DeadlineError.
    """

    id: str
    prompt_tokens: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    tenant: str = ""
    user: str = ""
    priority: int = 0
    weight: float = 1.0
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        _check("weight", self.weight, 0 < self.weight < math.inf, "above 0")
        in_time = self.deadline_s is None or 0 < self.deadline_s < math.inf
        _check("deadline_s", self.deadline_s, in_time, "seconds, above 0")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model found a token: natural logarithms, before temperature, filters and penalties.

    ``top`` holds the likeliest tokens at that place, as (token, logprob), likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Some more of an answer: one token, or several that came while nobody was looking.

    ``text`` is what may be shown: it can lag behind ``token_ids`` while a character is incomplete or a stop string
    may be coming. ``logprobs`` has one entry per token if asked for. The last event of a request has a
    ``finish_reason``. ``prompt_tokens`` and ``completion_tokens`` count the request so far; ``cached_tokens`` of the
    prompt were in the cache when it began.
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def then(self, later: TokenEvent) -> TokenEvent:
        """This event and the next one of the same request as one."""
        return TokenEvent(
            self.request_id,
            self.token_ids + later.token_ids,
            self.text + later.text,
            self.logprobs + later.logprobs,
            later.finish_reason,
            later.prompt_tokens,
            later.completion_tokens,
            later.cached_tokens,
        )


def _check(name: str, value: object, right: bool, expected: str) -> None:
    if not right:
        raise UsageError(f"`{name}` is {value}: expected {expected}", param=name)
