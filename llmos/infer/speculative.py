"""Drafts: guesses at the next tokens, which one step verifies together; and how many of them pay.

A step costs about a + b·n seconds for n tokens: a is reading the weights, which a few more tokens do not change. Where
the drafts of a request are right with the probability p each, k of them bring p + p² + … + p^k tokens more, each worth
what a token costs without drafts; they cost k·(b + d), with d for making one. As many are proposed as gain most by
these numbers, all of them measured as it goes: none where they lose, such as in a large batch, where b is most of a
step, or for a text that the drafter does not foresee. Then one draft is tried again every RETRY_STEPS steps; and as
often, one step has no drafts, so that there is always something to compare with.

The distribution of answers is that without drafts; see :mod:`llmos.infer.sampling`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

RETRY_STEPS = 32
"""Steps between two trials of what does not seem to pay."""

_MEMORY, _STEP_MEMORY = 0.9, 0.98
"""What a measurement still counts when the next one comes: of drafts, of steps."""
_PRIOR = 2.0
"""How many drafts of its own outweigh what a request is expected to be like by those before it."""


class Ask(NamedTuple):
    """A request whose next tokens are to be guessed, at most ``most`` of them; ``tokens`` are prompt and answer."""

    id: str
    tokens: Sequence[int]
    most: int


class Drafter(Protocol):
    """Guesses what follows. Requests come back with more tokens, until they are removed."""

    def draft(self, asked: Sequence[Ask]) -> list[tuple[int, ...]]:
        """For each request up to ``most`` tokens that may follow; none if it has no idea."""
        ...

    def remove(self, id: str) -> None:
        """Forget the request; nothing happens if there is none."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Speculation:
    """At most ``most`` drafts for each request and step, by ``drafter``. ``clock`` gives seconds."""

    def __init__(self, drafter: Drafter, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._drafter, self._most, self._clock = drafter, most, clock
        self._steps = StepCost()
        self._everyone = _Record(right=1.0, tried=2.0)
        self._records: dict[str, _Record] = {}
        self._draft_s = self._making_s = 0.0
        self._proposals = self._drafted = self._accepted = self._unasked = self._asked = 0

    def propose(self, running: Sequence[Ask]) -> dict[str, tuple[int, ...]]:
        """Drafts for those of ``running`` for whom they pay, no more than each has room for."""
        self._proposals += 1
        self._making_s = 0.0
        if self._proposals % RETRY_STEPS == 0 or not self._steps.known:
            return {}
        able = [ask for ask in running if ask.most > 0]  # the others are about to end
        asked = [ask._replace(most=min(ask.most, self._worth(ask.id, len(running)))) for ask in able]
        asked = [ask for ask in asked if ask.most]
        self._asked += len(asked)
        self._unasked += len(able) - len(asked)
        if not asked:
            return {}
        began_s = self._clock()
        found = {ask.id: drafts for ask, drafts in zip(asked, self._drafter.draft(asked), strict=True) if drafts}
        self._making_s = self._clock() - began_s
        if made := sum(map(len, found.values())):
            self._draft_s += (1 - _MEMORY) * (self._making_s / made - self._draft_s)
        return found

    def settle(self, id: str, drafts: int, accepted: int) -> None:
        """A step of the request is over, in which so many of its drafts were right: the next one was not."""
        record = self._records.get(id)
        if record is None:
            return  # it is over, or was never asked for
        record.since = 0 if drafts else record.since + 1
        if drafts:
            tried = accepted + (accepted < drafts)
            for one in (record, self._everyone):
                one.right, one.tried = one.right * _MEMORY + accepted, one.tried * _MEMORY + tried
            self._drafted += drafts
            self._accepted += accepted

    def stepped(self, tokens: int, duration_s: float) -> None:
        """A step that read no prompt took so long for so many tokens, drafts and their making included."""
        self._steps.add(tokens, max(0.0, duration_s - self._making_s))

    def remove(self, id: str) -> None:
        """Forget the request; nothing happens if there is none."""
        if self._records.pop(id, None) is not None:
            self._drafter.remove(id)

    def stats(self) -> dict[str, Any]:
        """JSON-able: drafts made and accepted, and how often none were made because they would not have paid."""
        return {
            "drafts": self._drafted,
            "drafts_accepted": self._accepted,
            "draft_acceptance": self._accepted / self._drafted if self._drafted else None,
            "draft_off": self._unasked / max(1, self._unasked + self._asked),
        }

    def close(self) -> None:
        """Free what the drafter holds."""
        self._drafter.close()

    def _worth(self, id: str, running: int) -> int:
        """How many drafts gain most for the request."""
        record = self._records.setdefault(id, _Record())
        right = (record.right + _PRIOR * self._everyone.rate) / (record.tried + _PRIOR)
        token_s, more_s = self._steps.seconds(running) / running, self._steps.per_token_s + self._draft_s
        gained, best_s, best = 0.0, 0.0, 0
        for count in range(1, self._most + 1):
            gained += right**count
            if gained * token_s - count * more_s > best_s:
                best_s, best = gained * token_s - count * more_s, count
        return best or int(record.since >= RETRY_STEPS)


@dataclass(slots=True)
class _Record:
    """How many drafts were ``right`` of those that were ``tried``, lately; ``since``: steps without any."""

    right: float = 0.0
    tried: float = 0.0
    since: int = 0

    @property
    def rate(self) -> float:
        return self.right / self.tried


class StepCost:
    """Seconds of a step by its tokens: a line through those measured, of which older ones count less and less."""

    def __init__(self) -> None:
        self._weight = self._n = self._nn = self._s = self._ns = 0.0

    def add(self, tokens: int, duration_s: float) -> None:
        """A step of ``tokens`` tokens took ``duration_s`` seconds."""
        self._weight = self._weight * _STEP_MEMORY + 1
        self._n = self._n * _STEP_MEMORY + tokens
        self._nn = self._nn * _STEP_MEMORY + tokens * tokens
        self._s = self._s * _STEP_MEMORY + duration_s
        self._ns = self._ns * _STEP_MEMORY + tokens * duration_s

    @property
    def known(self) -> bool:
        """Whether there was a step."""
        return self._weight > 0

    @property
    def per_token_s(self) -> float:
        """What one token more costs; 0 as long as all steps had as many."""
        spread = self._weight * self._nn - self._n**2
        if spread <= 1e-9 * self._nn:
            return 0.0
        return max(0.0, (self._weight * self._ns - self._n * self._s) / spread)

    def seconds(self, tokens: int) -> float:
        """What a step of ``tokens`` tokens costs, once there was one."""
        return max(0.0, self._s + (tokens * self._weight - self._n) * self.per_token_s) / self._weight
