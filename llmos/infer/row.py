"""What the choice of a request's next token depends on, besides the logits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmos.infer.grammar import Matcher
from llmos.infer.request import SamplingParams

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Changes = tuple[Ints, Floats]
"""Tokens, and a number for each."""

GREEDY_BELOW = 1e-5
"""Temperatures under it leave nothing to chance, and dividing by them leaves the range of float32."""

_AT_ONCE = 64


class State:
    """One request: ``ends`` are the tokens that end its answer, of which ``count`` tokens are known."""

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        prompt: Sequence[int],
        ends: frozenset[int],
        matcher: Matcher | None = None,
    ) -> None:
        self.params, self.ends, self.matcher, self.count = params, ends, matcher, 0
        self.greedy = params.temperature < GREEDY_BELOW
        self.seen = Seen(prompt if params.repetition_penalty != 1 else ()) if params.penalized else None
        self._always_edited = params.penalized or bool(params.logit_bias) or matcher is not None
        self._uniforms = _Uniforms(seed)
        self._biases = _changes(params.logit_bias)
        self._ends = _changes((end, -math.inf) for end in sorted(ends))

    def edited(self, ahead: int) -> bool:
        """Whether something is changed in the logits of the token ``ahead`` places after the next one."""
        return self._always_edited or self._early(ahead)

    def added(self, ahead: int) -> list[Changes]:
        """What is added to logits there: biases, and minus infinity for ends that come too early."""
        return [self._biases, self._ends] if self._early(ahead) else [self._biases]

    def uniform(self, ahead: int) -> float:
        """The random number in [0, 1) that the token there is drawn with."""
        return self._uniforms.at(self.count + ahead)

    def take(self, tokens: Sequence[int]) -> None:
        """The answer goes on with ``tokens``."""
        self.count += len(tokens)
        if self.seen is not None:
            self.seen.take(tokens)
        if self.matcher is not None:
            self.matcher.take([token for token in tokens if token not in self.ends])

    def _early(self, ahead: int) -> bool:
        return self.count + ahead < self.params.min_tokens


@dataclass(frozen=True, slots=True)
class Row:
    """Row ``number`` of the logits: what may follow the answer of ``state`` and ``drafts``, which are guesses."""

    number: int
    state: State
    drafts: tuple[int, ...] = ()

    @property
    def edited(self) -> bool:
        """Whether something is changed in this row before the choice."""
        return self.state.edited(len(self.drafts))


class Seen:
    """Tokens that were there, in the prompt or in the answer, and how often each was in the answer."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._place = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self._tokens = np.array([*self._place, *[0] * _AT_ONCE], dtype=np.int64)
        self._counts = np.zeros(len(self._tokens), dtype=np.float32)

    def take(self, tokens: Iterable[int]) -> None:
        """``tokens`` are in the answer, once more."""
        for token in tokens:
            place = self._place.setdefault(token, len(self._place))
            if place == len(self._tokens):
                self._tokens = np.append(self._tokens, np.zeros_like(self._tokens))
                self._counts = np.append(self._counts, np.zeros_like(self._counts))
            self._tokens[place] = token
            self._counts[place] += 1

    def after(self, drafts: Sequence[int]) -> Changes:
        """The tokens and their counts, if ``drafts`` came next."""
        size = len(self._place)
        if not drafts:
            return self._tokens[:size], self._counts[:size]
        place = dict(self._place)
        for token in drafts:
            place.setdefault(token, len(place))
        counts = np.append(self._counts[:size], np.zeros(len(place) - size, dtype=np.float32))
        np.add.at(counts, [place[token] for token in drafts], 1)
        return np.array(list(place), dtype=np.int64), counts


class _Uniforms:
    """One random number per place, the same however places are asked for."""

    def __init__(self, seed: int) -> None:
        self._seed, self._start = seed, 0
        self._numbers: list[float] = []

    def at(self, place: int) -> float:
        if not 0 <= place - self._start < len(self._numbers):
            counter = place // 4  # a counter of Philox4x64 gives four numbers
            generator = np.random.Generator(np.random.Philox(key=self._seed, counter=counter))
            self._start, self._numbers = counter * 4, generator.random(_AT_ONCE).tolist()
        return self._numbers[place - self._start]


def _changes(pairs: Iterable[tuple[int, float]]) -> Changes:
    listed = list(pairs)
    return np.array([t for t, _ in listed], dtype=np.int64), np.array([v for _, v in listed], dtype=np.float32)
