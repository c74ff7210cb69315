"""When those that wait are expected to start.

The queue is played forward on the cluster's totals: each job starts when enough has been given back, in order. Run
times are taken as log-normal, with the median and the ninth decile that are known; of what runs already, as what is
left of it given that it has run so long. For the median, what runs ends at its median; for the late estimate, at its
ninth decile. What has to start and end in between counts with its mean: in a long queue, lucky and unlucky ones even
out.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import heappop, heappush
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from llmos.core.resources import ROUNDING
from llmos.core.running import Running, column, left_high_s, left_s
from llmos.core.types import Job

Times = npt.NDArray[np.float64]
Estimate = tuple[float, float]

_DECILE = NormalDist().inv_cdf(0.9)
_LONGEST = 3.0
"""The mean of a log-normal time is taken as at most so many times its ninth decile, however wide it is."""
MOMENT_S = 60.0
"""A wait that is said to be shorter is stretched as if it were so long."""
_DEVIATIONS = np.linspace(-8.0, 8.0, 4097)
_LOG_SURVIVAL = np.log([0.5 * math.erfc(z / math.sqrt(2)) for z in _DEVIATIONS.tolist()])
"""The logarithm of the chance that a normal variable is more than so many standard deviations above its mean."""


class Estimates(Mapping[str, Estimate]):
    """What ``work_out`` says, job after job, which is asked when somebody wants to know, and as far as that."""

    def __init__(self, work_out: Callable[[], Iterable[tuple[str, Estimate]]]) -> None:
        self._work_out = work_out
        self._more: Iterator[tuple[str, Estimate]] | None = None
        self._found: dict[str, Estimate] = {}
        self._lock = threading.Lock()  # who asks may be several threads

    def __getitem__(self, id: str) -> Estimate:
        with self._lock:
            while id not in self._found:
                other, estimate = next(self._rest(), ("", None))
                if estimate is None:
                    raise KeyError(id)
                self._found[other] = estimate
            return self._found[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)})"

    @property
    def _all(self) -> Mapping[str, Estimate]:
        with self._lock:
            self._found.update(self._rest())
            return self._found

    def _rest(self) -> Iterator[tuple[str, Estimate]]:
        """What has not been worked out yet."""
        if self._more is None:
            self._more = iter(self._work_out())
        return self._more


def starts(
    blocked: Sequence[tuple[Job, Sequence[float]]],
    running: Sequence[Running],
    free: Sequence[float],
    promised: Mapping[str, float],
    now: float,
    caution: float = 1.0,
) -> Iterator[tuple[str, Estimate]]:
    """When each of ``blocked`` (jobs in order, and what they need) starts: the median, and when nine times of ten.

    Amounts, such as what is ``free``, are by kind of resource; ``promised`` are the times of reservations. The wait
    that is kept nine times of ten is stretched by ``caution``, and taken to be MOMENT_S at least. Jobs of which nothing
    can be said are left out.
    """
    if not blocked:
        return
    soon, latest = (_played(blocked, ends, running, free, now) for ends in _ends(running, now))
    for (job, _), at, late in zip(blocked, soon, latest, strict=False):  # both end where nothing more is known
        high = max(late, at, promised.get(job.id, now))
        if math.isfinite(high):
            yield job.id, (at, max(at, high if caution == 1.0 else now + caution * max(high - now, MOMENT_S)))


def _played(
    queue: Iterable[tuple[Job, Sequence[float]]],
    ends: Times,
    running: Sequence[Running],
    free: Sequence[float],
    now: float,
) -> Iterator[float]:
    """When each job of ``queue`` (and what it needs) starts, one after the other as far as that is known, if what is
    ``running`` ends at ``ends``."""
    order = np.argsort(-ends).tolist()  # the next is the last
    times = ends.tolist()
    later: list[tuple[float, str, Sequence[float]]] = []
    left, at = [value + ROUNDING for value in free], now
    for job, wanted in queue:
        while any(map(operator.gt, wanted, left)):
            end = times[order[-1]] if order else math.inf
            if end < math.inf and not (later and later[0][0] < end):
                at, back = end, running[order.pop()].held.total
            elif later:
                at, _, back = heappop(later)
            else:
                return  # nothing is known of when more is given back
            left = list(map(operator.add, left, back))
        yield at
        left = list(map(operator.sub, left, wanted))
        lasts = _mean(left_s(job), left_high_s(job))
        if lasts < math.inf:
            heappush(later, (at + lasts, job.id, wanted))


def _ends(running: Sequence[Running], now: float) -> tuple[Times, Times]:
    """When what runs ends: the median and the ninth decile, given that it has not ended yet."""
    opened, median, high = (column(running, name) for name in ("job.opened_at", "left", "left_high"))
    known = (median > 0) & (median < high) & (high < math.inf)
    likely = np.maximum(opened + median, now)
    late = np.maximum(opened + high, likely)
    if known.any():
        start, middle = opened[known], median[known]
        width, ran = np.log(high[known] / middle) / _DECILE, np.maximum(now - start, 0.0)
        deviations = np.log(np.maximum(ran, 1e-9) / middle) / width
        survival = np.interp(deviations, _DEVIATIONS, _LOG_SURVIVAL)
        for ends, chance in ((likely, 0.5), (late, 0.1)):
            quantile = np.interp(-survival - math.log(chance), -_LOG_SURVIVAL, _DEVIATIONS)
            ends[known] = start + np.maximum(middle * np.exp(width * quantile), ran)
    ending = np.fromiter((one.ending for one in running), dtype=bool, count=len(running))
    likely[ending] = now
    late[ending] = now + column(running, "job.grace_s")[ending]
    return likely, late


@lru_cache(maxsize=4096)
def _mean(median: float, high: float) -> float:
    """How long a job runs on average whose run time has this median and ninth decile, seconds; infinity when nothing is
    known. Cached: those of one kind have the same."""
    if not (0 < median < high < math.inf):
        return median
    return min(median * math.exp((math.log(high / median) / _DECILE) ** 2 / 2), _LONGEST * high)
