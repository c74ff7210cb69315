"""How long a job will run, learned from those of the same tenant and kind that ended before."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict, deque
from dataclasses import dataclass, field

KEPT = 64
"""Run times that are remembered of each kind: what people do changes."""
FEWEST = 3
"""With fewer, what is known of the tenant counts, then what is known of all."""
MEDIAN, HIGH = 0.5, 0.9


@dataclass(slots=True)
class _Sample:
    """The last KEPT run times (seconds), in order of time and of length."""

    recent: deque[float] = field(default_factory=deque)
    ordered: list[float] = field(default_factory=list)

    def add(self, run_s: float) -> None:
        self.recent.append(run_s)
        insort(self.ordered, run_s)
        if len(self.recent) > KEPT:
            del self.ordered[bisect_left(self.ordered, self.recent.popleft())]

    def quantile(self, share: float) -> float:
        """The least run time that at least ``share`` of (n + 1) are not above, as for a new one of the same kind."""
        rank = min(len(self.ordered), -int(-share * (len(self.ordered) + 1) // 1))
        return self.ordered[max(0, rank - 1)]


class RunTimes:
    """Quantiles of run times (seconds) by tenant and kind of job."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, ...], _Sample] = defaultdict(_Sample)

    def add(self, tenant: str, kind: str, run_s: float) -> None:
        """A job of ``tenant`` of this ``kind`` has run for ``run_s`` seconds and is done."""
        for key in ((tenant, kind), (tenant,), ()):
            self._samples[key].add(run_s)

    def estimate(self, tenant: str, kind: str) -> tuple[float, float] | None:
        """(median, 90 % quantile) for the next job of ``tenant`` of this ``kind``; None when nothing is known."""
        for key in ((tenant, kind), (tenant,), ()):
            sample = self._samples.get(key)
            if sample and (len(sample.ordered) >= FEWEST or not key):
                return sample.quantile(MEDIAN), sample.quantile(HIGH)
        return None
