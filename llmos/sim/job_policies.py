"""First in, first out, and the same with backfill."""

from __future__ import annotations

from collections import defaultdict, deque
from math import inf

from llmos.sim.job_replay import Queueing, Run, World
from llmos.sim.pool import Pool

LOOK = 100
"""Waiting jobs of each size that backfill looks at, at most."""


class Fifo(Queueing):
    """First in, first out: the first one that does not fit holds up all behind it."""

    def __init__(self) -> None:
        self._queue: deque[Run] = deque()

    def arrived(self, run: Run) -> None:
        """See Policy."""
        self._queue.append(run)

    def decide(self, world: World) -> float:
        """See Policy."""
        while self._queue and world.start(self._queue[0]):
            self._queue.popleft()
        return inf


class Backfill(Queueing):
    """EASY backfill: the first one that does not fit is promised a start; others may start before it if that does not
    move its start, by their estimates (Lifka, JSSPP 1995; Mu'alem and Feitelson, IEEE TPDS 12(6), 2001)."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[tuple[int, Run]]] = defaultdict(deque)  # by size, each in order of arrival
        self._count = 0

    def arrived(self, run: Run) -> None:
        """See Policy."""
        self._queues[run.job.gpus].append((self._count, run))
        self._count += 1

    def decide(self, world: World) -> float:
        """See Policy."""
        while (first := self._first()) and world.start(first):
            self._queues[first.job.gpus].popleft()
        if first and self._others_fit(first, world.pool):
            self._fill(first, world)
        return inf

    def _others_fit(self, first: Run, pool: Pool) -> bool:
        """Whether there is room for any that waits behind ``first``."""
        behind = (gpus for gpus, queue in self._queues.items() if len(queue) > (gpus == first.job.gpus))
        return pool.idle > 0 and any(map(pool.fits, behind))

    def _first(self) -> Run | None:
        heads = [queue[0] for queue in self._queues.values() if queue]
        return min(heads, key=lambda head: head[0])[1] if heads else None

    def _fill(self, first: Run, world: World) -> None:
        """Start those behind ``first`` that end before it is to start, or leave it the room it needs then."""
        shadow_s, spare = _promise(first, world)
        for gpus, queue in self._queues.items():
            kept: list[tuple[int, Run]] = []
            for _ in range(min(LOOK, len(queue))):
                if not world.pool.fits(gpus):
                    break
                place, run = queue.popleft()
                if run is first or not _start_beside(run, world, shadow_s, spare):
                    kept.append((place, run))
            queue.extendleft(reversed(kept))


def _promise(first: Run, world: World) -> tuple[float, list[int]]:
    """When ``first`` can start if all that runs ends as estimated, and what is free on each node then beside it."""
    then = Pool(world.pool.total // world.pool.per_node, world.pool.per_node)
    then.take((node, then.per_node - free) for node, free in enumerate(world.pool.free))
    ends = sorted((world.now + run.remaining(world.now), id, run) for id, run in world.running.items())
    for end_s, _, run in ends:
        then.give_back(run.placement or ())
        if then.place(first.job.gpus) is not None:
            return end_s, then.free
    return inf, then.free


def _start_beside(run: Run, world: World, shadow_s: float, spare: list[int]) -> bool:
    """Start ``run`` if it ends before ``shadow_s``, or on what is ``spare`` then, which it uses up."""
    if world.now + run.high_s <= shadow_s:
        return world.start(run)
    pool, gpus = world.pool, run.job.gpus
    if gpus >= pool.per_node:
        return False
    able = [node for node, free in enumerate(pool.free) if free >= gpus and spare[node] >= gpus]
    if not able:
        return False
    node = min(able, key=lambda node: (pool.free[node], node))
    spare[node] -= gpus
    return world.start(run, ((node, gpus),))
