"""How tokens are to be chosen: a request of OpenAI's API in the engine's words."""

from __future__ import annotations

from llmos.infer.request import Grammar, SamplingParams
from llmos.openai.schema import SEED_BITS, ChatRequest, CompletionRequest
from llmos.openai.structure import Constraint

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default; chats may fill the context


def sampling(
    request: CompletionRequest | ChatRequest,
    index: int,
    constraint: Constraint | None,
    stops: tuple[str, ...],
    shown: frozenset[int],
) -> SamplingParams:
    """The engine's parameters for answer ``index`` of ``request``; with a seed, each answer has one of its own."""
    limit = request.limit
    if isinstance(request, ChatRequest):
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
    else:
        limit, logprobs = DEFAULT_COMPLETION_TOKENS if limit is None else limit, request.logprobs
    given = {name: value for name in _PASSED_ON if (value := getattr(request, name)) is not None}
    seed = None if request.seed is None else request.seed % 2**SEED_BITS + (index << SEED_BITS)
    return SamplingParams(
        max_tokens=limit or None,  # with 0, the engine is not asked
        seed=seed,
        stop=stops,
        logprobs=logprobs,
        logit_bias=request.biases,
        stop_token_ids=frozenset(request.stop_token_ids or ()),
        shown_tokens=shown,
        grammar=None if constraint is None else Grammar(constraint.kind, constraint.text),
        **given,
    )


_PASSED_ON = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "ignore_eos",
    "min_tokens",
)
