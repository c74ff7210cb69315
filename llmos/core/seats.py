"""What runs undisturbed, remembered from plan to plan.

A job that runs needs nothing as long as its record and its attempt are the same as in the last plan. So a plan looks
only at what has changed: what the others hold, on each node and of each tenant, is remembered as sums. Amounts add up
exactly (:mod:`llmos.core.free`), so sums that were kept up to date are those that would be made anew.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np

from llmos.core.free import Grid, Matrix, added, without
from llmos.core.running import Running
from llmos.core.types import Attempt, Job, Snapshot

EARLY_S = 1.0
"""So long before its time limit, a job is looked at again in every plan."""

Sums = tuple[int, list[float]]
"""How many run, and what they hold together, by kind of resource."""


@dataclass(frozen=True, slots=True)
class Seats:
    """Those that run on ``grid``, and their attempts, by job id. Replaced by each plan, never changed.

    ``limits`` are the times from which on those that may run only for so long are looked at; ``elastic`` are those that
    may run larger. ``taken`` is what all of
    them hold, by kind and node; ``held`` by tenant.
    """

    grid: Grid
    taken: Matrix
    running: Mapping[str, Running] = field(default_factory=dict)
    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    elastic: frozenset[str] = frozenset()
    held: Mapping[str, Sums] = field(default_factory=dict)

    @staticmethod
    def empty(grid: Grid) -> Seats:
        """Nobody on ``grid``."""
        return Seats(grid, np.zeros_like(grid.total))

    def undisturbed(self, gone: Iterable[Job], snapshot: Snapshot) -> Seats:
        """Those of which nothing has changed. ``gone`` are the records that are not there any more as they were."""
        seen = snapshot.attempts
        anew = map(operator.is_not, map(seen.get, self.attempts), self.attempts.values())
        out = {id for id in compress(self.attempts, anew) if seen.get(id) != self.attempts[id]}
        out.update(job.id for job in gone if job.id in self.running)
        if self.limits and min(self.limits.values()) <= snapshot.now:
            out.update(id for id, at in self.limits.items() if at <= snapshot.now)
        return self.without(out)

    def without(self, ids: Collection[str]) -> Seats:
        """The others."""
        left = [self.running[id] for id in ids]
        if not left:
            return self
        running, attempts, limits = dict(self.running), dict(self.attempts), dict(self.limits)
        for one in left:
            del running[one.job.id], attempts[one.job.id]
            limits.pop(one.job.id, None)
        elastic = self.elastic.difference(ids) if self.elastic else self.elastic
        return Seats(self.grid, self._with(left, -1), running, attempts, limits, elastic, self._sums(left, -1))

    def plus(self, more: Sequence[Running]) -> Seats:
        """These and ``more``."""
        if not more:
            return self
        running, attempts, limits = dict(self.running), dict(self.attempts), self.limits
        for one in more:
            running[one.job.id], attempts[one.job.id] = one, one.attempt
            if (at := _looked_at_from(one.job)) is not None:
                limits = {**limits, one.job.id: at}
        elastic = self.elastic.union(one.job.id for one in more if one.job.larger)
        return Seats(self.grid, self._with(more, 1), running, attempts, limits, elastic, self._sums(more, 1))

    def _with(self, some: Sequence[Running], sign: int) -> Matrix:
        """``taken`` with what ``some`` hold added, or taken away."""
        if sign > 0:
            return added([one.held for one in some], self.taken)
        return without([one.held for one in some], self.taken)

    def _sums(self, some: Iterable[Running], sign: int) -> dict[str, Sums]:
        held = dict(self.held)
        for one in some:
            count, sums = held.get(one.job.tenant, (0, [0.0] * len(one.total)))
            more = [a + sign * b for a, b in zip(sums, one.total, strict=True)]
            held[one.job.tenant] = count + sign, more
            if not held[one.job.tenant][0]:
                del held[one.job.tenant]
        return held


def _looked_at_from(job: Job) -> float | None:
    """When the time limit of ``job`` is near; None if it has none."""
    return None if job.max_runtime_s is None else job.opened_at + job.max_runtime_s - job.run_s - EARLY_S
