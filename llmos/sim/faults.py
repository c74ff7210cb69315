"""What goes wrong in the twin, drawn from a seed: nodes lost, jobs stuck, launches that fail or take long, stragglers.

The same seed gives each attempt of each job the same fate, and the nodes the same outages, under every policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from random import Random

DAY_S = 86_400.0
NOTICED_S = 600.0
"""So long after its last progress a stuck job is killed."""
LAUNCH_FOUND_S = 10.0
"""So long a launch takes to fail."""


@dataclass(frozen=True, slots=True)
class Fate:
    """Of one attempt: it begins ``launch_s`` after its start, works at ``speed`` for ``works_s``, and is found to have
    failed ``found_s`` after that, if it has not ended before."""

    launch_s: float = 0.0
    speed: float = 1.0
    works_s: float = inf
    found_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Faults:
    """``failures_per_day`` nodes of the cluster are lost, and back after ``repair_s``. ``launch_failures`` is the share
    of the launches that fail; the others take ``launch_s`` on average. ``stuck_per_day`` is how often a running job is
    stuck, ``stragglers`` the share of the attempts that are ``slower`` by a factor. Who fails goes on from a
    checkpoint: one is written every ``checkpoint_s`` of work.
    """

    seed: int = 0
    failures_per_day: float = 0.0
    launch_failures: float = 0.0
    stuck_per_day: float = 0.0
    stragglers: float = 0.0
    launch_s: float = 0.0
    repair_s: float = 4 * 3600.0
    slower: float = 1.5
    checkpoint_s: float = 1800.0

    @property
    def none(self) -> bool:
        """Whether nothing goes wrong."""
        return not (
            self.failures_per_day or self.launch_failures or self.stuck_per_day or self.stragglers or self.launch_s
        )

    def fate(self, job: str, attempt: int) -> Fate:
        """What becomes of the attempt of that number."""
        rng = Random(f"{self.seed} {job} {attempt}")
        fails, straggles, launch, stuck = rng.random(), rng.random(), rng.expovariate(1.0), rng.expovariate(1.0)
        if fails < self.launch_failures:
            return Fate(works_s=0.0, found_s=LAUNCH_FOUND_S)
        speed = 1 / self.slower if straggles < self.stragglers else 1.0
        works_s = stuck * DAY_S / self.stuck_per_day if self.stuck_per_day else inf
        return Fate(launch * self.launch_s, speed, works_s, NOTICED_S)

    def outages(self, nodes: int) -> Iterator[tuple[float, int]]:
        """(seconds from the beginning, node) of each loss, by time, without end."""
        rng, at = Random(f"{self.seed} nodes"), 0.0
        while self.failures_per_day:
            at += rng.expovariate(1.0) * DAY_S / self.failures_per_day
            yield at, rng.randrange(nodes)
