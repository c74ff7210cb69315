"""Ranks that are slower than the others, by their own work: how long they wait for others says nothing."""

from __future__ import annotations

import socket
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from llmos.parallel.world import World
from llmos.train.events import record

ROUNDS = 3
"""So many measurements in a row make a rank slow: one may be a page fault, a garbage collection, a neighbour's job."""
ROUND_STEPS = 10
"""Of which one measurement is a rank's median."""


def slow_ranks(rounds: Sequence[Sequence[float]], factor: float) -> set[int]:
    """The ranks that took more than ``factor`` times the median rank in each of the last ROUNDS of ``rounds``. Pure.

    A round has the seconds a step of each rank. Of two ranks the faster one is the median.
    """
    last = rounds[-ROUNDS:]
    if len(last) < ROUNDS:
        return set()
    limits = [factor * statistics.median_low(times) for times in last]
    ranks = range(len(last[0]))
    return {rank for rank in ranks if all(times[rank] > most for times, most in zip(last, limits, strict=True))}


class Stragglers:
    """Watches the ranks of ``world`` and tells rank 0's ``events``, a file, when one has become slow.

    Collective: ranks tell each other their hosts.
    """

    def __init__(self, factor: float, world: World, events: Path) -> None:
        self._factor, self._world, self._events = factor, world, events
        self._hosts = world.from_all(socket.gethostname)
        self._steps: list[Sequence[float]] = []
        self._rounds: deque[Sequence[float]] = deque(maxlen=ROUNDS)
        self._slow: set[int] = set()

    def observe(self, own_s: Sequence[float]) -> None:
        """Take note of a step: how long each rank worked by itself, in seconds."""
        self._steps.append(own_s)
        if len(self._steps) < ROUND_STEPS:
            return
        self._rounds.append([statistics.median(times) for times in zip(*self._steps, strict=True)])
        self._steps = []
        slow = slow_ranks(list(self._rounds), self._factor)
        if self._world.first:
            for rank in sorted(slow - self._slow):
                record(self._events, "slow_rank", self._description(rank))
        self._slow = slow

    def _description(self, rank: int) -> str:
        own_s = statistics.median(times[rank] for times in self._rounds)
        median_s = statistics.median(statistics.median_low(times) for times in self._rounds)
        how = f"works {own_s:.3g} s a step, {own_s / median_s:.1f} times the median rank's {median_s:.3g} s"
        return f"rank {rank} on {self._hosts[rank]} {how}, waits left out, over {ROUNDS * ROUND_STEPS} steps"
