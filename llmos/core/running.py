"""Jobs with what they hold, and when they are expected to give it back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from llmos.core.free import GPU, Held
from llmos.core.shape import Shape
from llmos.core.types import Attempt, Gang, Job


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A job with its living attempt, whose gang (``shape``) is on ``nodes``.

    It holds ``total`` (by kind), of which ``held`` is on nodes that take work. ``left`` and ``left_high`` are how
    long it runs from its start on: :func:`left_s`, :func:`left_high_s`. ``ending``: it was asked to end.
    """

    job: Job
    attempt: Attempt
    nodes: tuple[str, ...]
    shape: Shape
    held: Held
    total: Sequence[float]
    left: float
    left_high: float
    ending: bool

    @staticmethod
    def of(job: Job, attempt: Attempt, nodes: tuple[str, ...], shape: Shape, held: Held) -> Running:
        """``job`` as it runs."""
        ending = attempt.stopping_since is not None
        return Running(job, attempt, nodes, shape, held, shape.total, left_s(job), left_high_s(job), ending)

    def asked(self, now: float) -> Running:
        """The same once it was asked to end."""
        return self if self.ending else replace(self, attempt=replace(self.attempt, stopping_since=now), ending=True)

    @property
    def gang(self) -> Gang:
        return self.shape.gang

    @property
    def shrinkable(self) -> bool:
        return len(self.nodes) > len(self.job.gang.bundles) and not self.ending

    @property
    def gpus(self) -> float:
        return self.total[GPU]

    def lost_s(self, now: float) -> float:
        """Seconds of its work that would have to be done again if it ended now."""
        return max(now - max(self.job.opened_at, self.job.checkpointed_at or 0.0), 0.0)

    def ends_at(self, now: float) -> float:
        """When it gives back what it holds, as likely before as after; infinity when nothing is known.

        At once if it was asked to end, and if it is overdue: what it holds is kept for those who wait longest.
        """
        return now if self.ending else max(self.job.opened_at + self.left, now)


def column(running: Sequence[Running], name: str) -> npt.NDArray[np.float64]:
    """The attribute ``name`` of all of them."""
    return np.fromiter(map(attrgetter(name), running), dtype=np.float64, count=len(running))


def oldest_first(running: Iterable[Running]) -> list[Running]:
    """By the time at which their jobs were submitted."""
    return sorted(running, key=lambda one: (one.job.submitted_at, one.job.id))


def expected_s(job: Job, ran_s: float) -> float:
    """How long ``job`` is expected to run on once it has run ``ran_s`` seconds: to its median, past that to its ninth
    decile, past that as long as it has run; infinity when nothing is known."""
    limit = math.inf if job.max_runtime_s is None else max(job.max_runtime_s - ran_s, 0.0)
    if job.estimate_s is None:
        return limit
    high = job.estimate_s if job.estimate_high_s is None else job.estimate_high_s
    end = next((end for end in (job.estimate_s, high) if ran_s < end), 2 * ran_s)
    return min(end - ran_s, limit)


def left_s(job: Job) -> float:
    """The median of how long the next or the open attempt of ``job`` runs, seconds; infinity when nothing is known."""
    limit = _limit_s(job)
    return limit if job.estimate_s is None else min(max(job.estimate_s - job.run_s, 0.0), limit)


def left_high_s(job: Job) -> float:
    """Nine times of ten it runs no longer than that. A job that has outrun its estimate may run for ever."""
    high = job.estimate_s if job.estimate_high_s is None else job.estimate_high_s
    limit = _limit_s(job)
    return limit if high is None or job.run_s >= high else min(high - job.run_s, limit)


def _limit_s(job: Job) -> float:
    return math.inf if job.max_runtime_s is None else max(job.max_runtime_s - job.run_s, 0.0)
