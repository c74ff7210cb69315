"""Ranks that are slower than the others, by their own work: time spent waiting for others says nothing. PURE."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

ROUNDS = 3
"""So many measurements in a row make a rank slow: one may be a page fault, a garbage collection, a neighbour's job."""
EVERY_STEPS = 10
"""Of which one measurement is the median of a rank."""


def slow_ranks(rounds: Sequence[Sequence[float]], factor: float) -> list[int]:
    """The ranks that took more than ``factor`` times the median rank in each of the last ROUNDS of ``rounds``.

    A round has the seconds a step of each rank. Of two ranks the faster one is the median.
    """
    last = rounds[-ROUNDS:]
    if len(last) < ROUNDS:
        return []
    limits = [factor * statistics.median_low(times) for times in last]
    return [
        rank
        for rank in range(len(last[0]))
        if all(times[rank] > most for times, most in zip(last, limits, strict=True))
    ]


def describe(rank: int, host: str, rounds: Sequence[Sequence[float]]) -> str:
    """What to say about a slow rank on ``host``."""
    last = rounds[-ROUNDS:]
    own_s = statistics.median(times[rank] for times in last)
    median_s = statistics.median(statistics.median_low(times) for times in last)
    how = f"{own_s:.3g} s a step without waiting for others, {own_s / median_s:.1f} times the median rank"
    return f"rank {rank} on {host} takes {how} ({median_s:.3g} s), over {ROUNDS * EVERY_STEPS} steps"
