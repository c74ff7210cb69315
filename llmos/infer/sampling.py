"""The next tokens of all rows of a batch. Every request has its own parameters and its own random numbers.

One number per token, from a counter-based generator keyed by the request's seed (Philox4x64: Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011) and counted by the token's place, drives the inverse of the cumulative
distribution. So what chance adds to an answer depends on its seed alone: not on its neighbours in the batch, not on
when it came, not on drafts. (Its logits do, in their last bits: products of other shapes add up in another order.)

Drafts are verified with that same number: the token is drawn as if there were no draft, and a draft that equals it is
accepted. This is speculative sampling (Leviathan et al., arXiv 2211.17192) for a draft that is certain, so it changes
no distribution; and not even a single answer (arXiv 2408.07978 calls it drafter-invariant).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from llmos.errors import EngineError
from llmos.infer import edits
from llmos.infer.drawing import draw
from llmos.infer.grammar import Matcher
from llmos.infer.logprobs import Logprobs
from llmos.infer.request import SamplingParams, TokenLogprob
from llmos.infer.row import Row, State

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Sampled:
    """One token, or the accepted drafts and one more. ``logprobs`` has as many entries, or none if none were asked."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


class Sampler:
    """Chooses tokens for the requests that were added. All of its methods are for one thread."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}

    def add(
        self,
        id: str,
        params: SamplingParams,
        seed: int,
        prompt: Sequence[int],
        ends: frozenset[int],
        matcher: Matcher | None = None,
    ) -> None:
        """Choose for the request from now on. ``ends`` are the tokens that end it, ``matcher`` is for its grammar."""
        assert (matcher is None) == (params.grammar is None), "a grammar is compiled before its request is added"
        self._states[id] = State(params, seed, prompt, ends, matcher)

    def remove(self, id: str) -> None:
        """Forget the request; nothing happens if there is none."""
        self._states.pop(id, None)

    def verify(self, asked: Sequence[tuple[str, Sequence[int]]], logits_LV: Tensor) -> list[Sampled | EngineError]:
        """What comes next for each of ``asked`` (id, drafts). What is wrong with a row is its answer.

        ``logits_LV`` is float32, on any device, and overwritten. Rows are in the order of ``asked``: a request with k
        drafts has 1 + k of them, after its last token and after each draft.
        """
        rows: list[Row] = []
        for id, drafts in asked:
            rows += [Row(len(rows) + k, self._states[id], tuple(drafts[:k])) for k in range(len(drafts) + 1)]
        logprobs = Logprobs(rows, logits_LV)
        choices = _choose(rows, logits_LV)
        start, answers = 0, []
        for _, drafts in asked:
            end = start + len(drafts) + 1
            answers.append(_accept(rows[start:end], choices[start:end], logprobs))
            start = end
        return answers

    def guess(self, ids: Sequence[str], ahead: int, logits_LV: Tensor) -> list[int]:
        """Drafts from another model's logits, for the places ``ahead`` tokens after the next ones. Nothing is taken.

        Each is drawn with the number with which the token at that place will be drawn: the more alike the two models
        are, the more drafts are accepted. Edits are left out.
        """
        rows = [Row(number, self._states[id], (0,) * ahead) for number, id in enumerate(ids)]
        tokens, maxima = _likeliest(logits_LV)
        _draw_into(tokens, [row for row in rows if _drawable(row, maxima[row.number])], logits_LV)
        return tokens


def _choose(rows: Sequence[Row], logits_LV: Tensor) -> list[int | EngineError]:
    """A token for each of ``rows``, which are all of ``logits_LV``."""
    tokens, maxima = _likeliest(logits_LV)
    failed = {n: _not_numbers() for n, most in enumerate(maxima) if not math.isfinite(most)}
    edited = [row for row in rows if row.edited]  # those that failed too: a grammar walks all rows of its request
    if edited:
        edits.apply(edited, logits_LV)
        best = _likeliest(logits_LV[[row.number for row in edited]])
        for row, token, most in zip(edited, *best, strict=True):
            tokens[row.number], maxima[row.number] = token, most
            broken = row.state.matcher.error if row.state.matcher is not None else ""
            if broken or not math.isfinite(most):
                failed.setdefault(row.number, _nothing_left(broken) if broken or most == -math.inf else _overflow())
    chance = [row for row in rows if row.number not in failed and _drawable(row, maxima[row.number])]
    _draw_into(tokens, chance, logits_LV)
    return [failed.get(number, token) for number, token in enumerate(tokens)]


def _drawable(row: Row, most: float) -> bool:
    """Whether chance has a say in ``row``, whose largest logit is ``most``.

    Divided by the temperature it must be a float32; where it is not, the likeliest is as good as certain.
    """
    return not row.state.greedy and abs(most) / row.state.params.temperature < _FLOAT32_MAX


def _draw_into(tokens: list[int], rows: Sequence[Row], logits_LV: Tensor) -> None:
    """Replace the likeliest of ``tokens`` by what chance gives ``rows``."""
    if not rows:
        return
    logits_RV = logits_LV if len(rows) == len(logits_LV) else logits_LV[[row.number for row in rows]]
    uniforms = [row.state.uniform(len(row.drafts)) for row in rows]
    drawn = draw(logits_RV, [row.state.params for row in rows], uniforms)
    for row, token in zip(rows, drawn, strict=True):
        tokens[row.number] = token


def _likeliest(logits_LV: Tensor) -> tuple[list[int], list[float]]:
    """The likeliest token of each row, the first of equals, and its logit; NaN comes before any number."""
    if logits_LV.device.type == "cpu":  # numpy takes 1.5 ms for 64 rows of 49,152 on one core, torch 3.7
        numbers_LV = logits_LV.numpy()
        tokens_L = numbers_LV.argmax(axis=1)
        return tokens_L.tolist(), numbers_LV[np.arange(len(tokens_L)), tokens_L].tolist()
    found = logits_LV.max(dim=-1)
    return found.indices.tolist(), found.values.tolist()


def _accept(rows: Sequence[Row], choices: Sequence[int | EngineError], logprobs: Logprobs) -> Sampled | EngineError:
    """One request's choices, up to the first that is not the draft of its place: the others followed a wrong guess."""
    state, drafts = rows[0].state, rows[-1].drafts
    tokens: list[int] = []
    found: tuple[TokenLogprob, ...] = ()
    for row, choice in zip(rows, choices, strict=True):
        if isinstance(choice, EngineError):
            return choice
        tokens.append(choice)
        found += logprobs.of(row, choice)
        if tuple(tokens) != drafts[: len(tokens)] or choice in state.ends:
            break
    state.take(tokens)
    return Sampled(tuple(tokens), found)


def _not_numbers() -> EngineError:
    what = "the model answered with values that are not numbers"
    return EngineError(f"{what}: expected finite logits", hint="Its weights may be damaged, or overflow the dtype.")


def _overflow() -> EngineError:
    what = "the logits with the request's penalties and biases are beyond float32: expected finite ones"
    return EngineError(what, hint="Set `repetition_penalty` nearer to 1.")


def _nothing_left(broken: str) -> EngineError:
    if broken:
        return EngineError(f"the answer's grammar cannot go on: {broken}", hint="Use a simpler grammar.")
    what = "no token is left to choose from: `logit_bias`, `min_tokens` and the grammar forbid all of them"
    return EngineError(what, hint="Allow more tokens.")
