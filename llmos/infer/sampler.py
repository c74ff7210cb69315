"""The choice of the next token. Every row has its own parameters and its own random numbers.

One number per token, from a counter-based generator keyed by the request's seed (Philox4x64: Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011), drives the inverse of the cumulative distribution. So what chance adds to
an answer depends on its seed alone, not on its neighbours in the batch nor on when it came. (Its logits do, in their
last bits: matrix products of other shapes add up in another order.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmos.errors import EngineError
from llmos.infer.request import SamplingParams, TokenLogprob

Floats = NDArray[np.float32]

GREEDY_BELOW = 1e-5
"""Temperatures under it leave nothing to chance, and dividing by them leaves the range of float32."""


class Sampler:
    """Chooses the tokens of one request, in order. ``prompt_tokens`` matter for the repetition penalty."""

    def __init__(self, params: SamplingParams, seed: int, prompt_tokens: tuple[int, ...]) -> None:
        self._params = params
        self._random = np.random.Generator(np.random.Philox(key=seed))
        self._counts: dict[int, int] = {}
        self._prompt = frozenset(prompt_tokens) if params.repetition_penalty != 1 else frozenset()

    def choose(self, logits_V: Floats) -> int:
        """The next token. Greedy choice takes the first of equally likely ones."""
        params = self._params
        if params.penalized:
            logits_V = self._penalized(logits_V)
        if params.temperature < GREEDY_BELOW:
            token = int(logits_V.argmax())
        else:
            p_V = _softmax(logits_V, params.temperature)
            token = _draw(p_V, _least(p_V, params), self._random.random())
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _penalized(self, logits_V: Floats) -> Floats:
        """Repetition: CTRL, arXiv 1909.05858, section 4.1. Frequency and presence: OpenAI's API reference."""
        logits_V = logits_V.copy()
        repetition = self._params.repetition_penalty
        if repetition != 1:
            seen = list(self._prompt.union(self._counts))
            some = logits_V[seen]
            logits_V[seen] = np.where(some > 0, some / repetition, some * repetition)
        tokens, counts = list(self._counts), np.array(list(self._counts.values()), dtype=np.float32)
        logits_V[tokens] -= self._params.frequency_penalty * counts + self._params.presence_penalty
        return logits_V


def checked(logits_V: Floats) -> Floats:
    """``logits_V``, unless they are not numbers: then EngineError."""
    if not np.isfinite(logits_V.max()):
        what = "the model answered with values that are not numbers"
        raise EngineError(f"{what}: expected finite logits", hint="Its weights may be damaged, or overflow the dtype.")
    return logits_V


def logprob(logits_V: Floats, token: int, alternatives: int) -> TokenLogprob:
    """How likely ``token`` was, and the likeliest ``alternatives``."""
    alternatives = min(alternatives, len(logits_V))
    logprobs_V = logits_V - (logits_V.max() + np.log(np.exp(logits_V - logits_V.max()).sum()))
    top = np.argpartition(logprobs_V, -alternatives)[-alternatives:] if alternatives else np.array([], dtype=int)
    ordered = sorted(((int(t), float(logprobs_V[t])) for t in top), key=lambda pair: (-pair[1], pair[0]))
    return TokenLogprob(token, float(logprobs_V[token]), tuple(ordered))


def _softmax(logits_V: Floats, temperature: float) -> Floats:
    p_V: Floats = logits_V - logits_V.max()
    p_V /= np.float32(temperature)
    np.exp(p_V, out=p_V)
    p_V /= p_V.sum()
    return p_V


def _least(p_V: Floats, params: SamplingParams) -> float:
    """How likely a token must be to stay: top-k, then top-p over what is left, then min-p.

    Tokens exactly as likely as the last one kept are kept too. Top-p: arXiv 1904.09751; min-p: arXiv 2407.01082.
    """
    least = params.min_p * float(p_V.max())
    if 0 < params.top_k < len(p_V) or params.top_p < 1:
        kept = np.sort(p_V)[::-1][: params.top_k or None]
        if params.top_p < 1:
            sums = kept.cumsum(dtype=np.float64)
            kept = kept[: np.searchsorted(sums, params.top_p * sums[-1]) + 1]
        least = max(least, float(kept[-1]))
    return least


def _draw(p_V: Floats, least: float, uniform: float) -> int:
    """The token at ``uniform`` (in [0, 1)) of the cumulative distribution of those of at least ``least``, not 0."""
    tokens = np.flatnonzero(p_V >= least if least > 0 else p_V)
    sums = p_V[tokens].cumsum(dtype=np.float64)
    return int(tokens[np.searchsorted(sums[:-1], uniform * sums[-1], side="right")])
