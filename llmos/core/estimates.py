"""When those that wait are expected to start.

The queue is played forward on the cluster's totals: each job starts when enough has been given back, in order. Run
times are taken as log-normal, with the median and the ninth decile that are known; of what runs already, as what is
left of it given that it has run so long. For the median, what runs ends at its median; for the late estimate, at its
ninth decile. What has to start and end in between counts with its mean: in a long queue, lucky and unlucky ones even
out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from statistics import NormalDist

from llmos.core.resources import ROUNDING
from llmos.core.running import Running, left_high_s, left_s
from llmos.core.types import Job

_NORMAL = NormalDist()
_DECILE = _NORMAL.inv_cdf(0.9)
_LONGEST = 3.0
"""The mean of a log-normal time is taken as at most so many times its ninth decile, however wide it is."""

Event = tuple[float, str, Sequence[float]]


def starts(
    blocked: Sequence[Job],
    running: Iterable[Running],
    free: Sequence[float],
    needs: Callable[[Job], Sequence[float]],
    promised: Mapping[str, float],
    now: float,
) -> dict[str, tuple[float, float]]:
    """When each of ``blocked``, in order, starts: the median, and the time before which it does nine times of ten.

    ``free`` and what ``needs`` tells are amounts by kind of resource; ``promised`` are the times of reservations.
    Jobs of which nothing can be said are left out.
    """
    if not blocked:
        return {}
    likely: list[Event] = []
    late: list[Event] = []
    for one in running:
        held = one.held.total
        median, high = _ends(one, now)
        likely.append((median, one.job.id, held))
        late.append((high, one.job.id, held))
    queue = [(job.id, needs(job), _mean(job)) for job in blocked]
    soon, latest = (_played(queue, events, free, now) for events in (likely, late))
    found = {}
    for job in blocked:
        at = soon.get(job.id, math.inf)
        high = max(latest.get(job.id, math.inf), at, promised.get(job.id, now))
        if math.isfinite(high):
            found[job.id] = at, high
    return found


def _played(
    queue: Iterable[tuple[str, Sequence[float], float]], releases: list[Event], free: Sequence[float], now: float
) -> dict[str, float]:
    """When each job of ``queue`` (id, what it needs, how long it runs) starts, if what runs ends as in ``releases``."""
    events = [event for event in releases if math.isfinite(event[0])]
    heapify(events)
    left, at = [value + ROUNDING for value in free], now
    starts: dict[str, float] = {}
    kinds = range(len(left))
    for id, wanted, lasts in queue:
        while short := next((kind for kind in kinds if wanted[kind] > left[kind]), -1) + 1:
            if not events:
                return starts  # nothing is known of when more is given back
            while events and wanted[short - 1] > left[short - 1]:
                at, _, held = heappop(events)
                for kind in kinds:
                    left[kind] += held[kind]
        starts[id] = at
        for kind in kinds:
            left[kind] -= wanted[kind]
        if lasts < math.inf:
            heappush(events, (at + lasts, id, wanted))
    return starts


def _ends(one: Running, now: float) -> tuple[float, float]:
    """When what runs ends: the median and the ninth decile, given that it has not ended yet."""
    if one.ending:
        return now, now + one.job.grace_s
    median, high, ran = one.left, one.left_high, max(now - one.job.opened_at, 0.0)
    if not (0 < median < high < math.inf):
        known = max(one.job.opened_at + median, now)
        return known, max(one.job.opened_at + high, known)
    width = math.log(high / median) / _DECILE
    gone = _NORMAL.cdf(math.log(ran / median) / width) if ran > 0 else 0.0

    def quantile(part: float) -> float:
        chance = min(1 - (1 - part) * (1 - gone), 1 - 1e-12)
        return one.job.opened_at + max(median * math.exp(width * _NORMAL.inv_cdf(chance)), ran)

    return quantile(0.5), quantile(0.9)


def _mean(job: Job) -> float:
    """How long ``job`` runs on average, seconds; infinity when nothing is known."""
    median, high = left_s(job), left_high_s(job)
    if not (0 < median < high < math.inf):
        return median
    return min(median * math.exp((math.log(high / median) / _DECILE) ** 2 / 2), _LONGEST * high)
