"""Shortest remaining time first."""

from __future__ import annotations

from collections import defaultdict
from heapq import heappop, heappush
from math import inf

from llmos.sim.job_replay import Queueing, Run, World

Waiting = tuple[float, int, Run, int]
"""What remains of it, its turn among equals, the job, and how many attempts it had when it began to wait."""


class Shortest(Queueing):
    """Shortest remaining time first, with preemption: whoever is expected to end first runs.

    A job is preempted only for one that ends earlier by more than what the preemption costs.
    """

    def __init__(self, restart_s: float) -> None:
        self._restart_s = restart_s
        self._queues: dict[int, list[Waiting]] = defaultdict(list)
        self._new: list[Run] = []
        self._count = 0

    def arrived(self, run: Run) -> None:
        """See Policy."""
        self._new.append(run)

    def decide(self, world: World) -> float:
        """See Policy."""
        for run in self._new:
            self._wait(run, world)
        self._fill(world)
        waiting = [run for run in self._new if run.placement is None]
        for run in sorted(waiting, key=lambda run: run.remaining(world.now)):
            if victims := self._victims(run, world):
                for victim in victims:
                    world.preempt(victim)
                    self._wait(victim, world)
                world.start(run)
        if waiting:
            self._fill(world)
        self._new = []
        return inf

    def _wait(self, run: Run, world: World) -> None:
        self._count += 1
        heappush(self._queues[run.job.gpus], (run.remaining(world.now), self._count, run, run.attempts))

    def _fill(self, world: World) -> None:
        """Start whoever waits and fits, the shortest first."""
        while fitting := [first for gpus in self._queues if world.pool.fits(gpus) and (first := self._first(gpus))]:
            run = min(fitting)[2]
            heappop(self._queues[run.job.gpus])
            world.start(run)

    def _first(self, gpus: int) -> Waiting | None:
        """The shortest of this size that still waits."""
        queue = self._queues[gpus]
        while queue and (queue[0][2].placement is not None or queue[0][2].attempts != queue[0][3]):
            heappop(queue)
        return queue[0] if queue else None

    def _victims(self, run: Run, world: World) -> list[Run]:
        """Whom to preempt so that ``run`` fits: those expected to run longest, none that ends before it would."""
        pool, limit = world.pool, run.remaining(world.now) + self._restart_s
        on: dict[int, list[tuple[float, str, Run]]] = defaultdict(list)
        for id, other in world.running.items():
            if (left := other.remaining(world.now)) > limit:
                for node, _ in other.placement or ():
                    on[node].append((left, id, other))
        ways = [_cleared(node, others, min(run.job.gpus, pool.per_node), world) for node, others in on.items()]
        nodes = -(-run.job.gpus // pool.per_node)
        missing = nodes - sum(free == pool.per_node for free in pool.free) if nodes > 1 else 1
        best = sorted((way for way in ways if way), key=lambda way: -min(left for left, _, _ in way))[:missing]
        if len(best) < missing:
            return []
        return list({id: other for way in best for _, id, other in way}.values())


def _cleared(
    node: int, others: list[tuple[float, str, Run]], needed: int, world: World
) -> list[tuple[float, str, Run]]:
    """Those of ``others`` that leave ``needed`` GPUs free on ``node`` once they are gone, the longest first; none if
    all together do not."""
    free = world.pool.free[node]
    chosen = []
    for left, id, other in sorted(others, reverse=True, key=lambda entry: entry[:2]):
        chosen.append((left, id, other))
        free += dict(other.placement or ())[node]
        if free >= needed:
            return chosen
    return []
