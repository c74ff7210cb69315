"""Nodes that kill jobs get no new ones for a while."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from llmos.core.types import Failure

WINDOW_S = 3600.0
"""A failure counts for so long."""
BLAME = 2.0
"""A node is closed when it is to blame for so many failures: each is shared among the nodes that the attempt had."""
JOBS = 2
"""They must be failures of so many jobs: one may just be broken itself."""
MOST = 0.25
"""No larger part of the nodes is closed: where all kill jobs, none of them is the cause."""


def quarantined(failures: Iterable[Failure], nodes: Collection[str], now: float) -> dict[str, str]:
    """Those of ``nodes`` that take no new work, and why."""
    blame: dict[str, float] = defaultdict(float)
    jobs: dict[str, set[str]] = defaultdict(set)
    for failure in failures:
        if 0 <= now - failure.at < WINDOW_S:
            involved = set(failure.nodes)
            for node in involved:
                blame[node] += 1 / len(involved)
                jobs[node].add(failure.job)
    there = set(nodes)
    guilty = [node for node in blame if node in there and blame[node] >= BLAME and len(jobs[node]) >= JOBS]
    worst_first = sorted(guilty, key=lambda node: (-blame[node], node))[: int(MOST * len(there))]
    return {
        node: f"{len(jobs[node])} jobs failed on it within {WINDOW_S / 60:.0f} minutes: {', '.join(sorted(jobs[node]))}"
        for node in worst_first
    }
