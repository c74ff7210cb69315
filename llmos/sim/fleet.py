"""A service in the twin: requests of a trace, the replicas that answer them, and how soon they did.

Each replica has so many places, a request takes one of them for as long as it is answered, in the order of arrival. How
many replicas there should be is what ``core.replicas`` says, from what was seen of the load. A replica that is to go
takes no more, and keeps its GPUs until it has answered what it has; one that still starts goes at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from statistics import fmean

from llmos.core.replicas import Promises, Rates, Scale, Traffic, scale, slots
from llmos.core.types import Gang, Resources, Service, ServiceStatus
from llmos.sim.job_replay import Stay, World
from llmos.sim.pool import Placement
from llmos.sim.request_traces import Request

WINDOW_S = 120.0
"""How many requests come in a second is seen from those of so many seconds."""


@dataclass(frozen=True, slots=True)
class Plans:
    """What is asked of a service: replicas of ``gpus`` GPUs on one node each, as few and as many as ``bounds`` say."""

    name: str
    gpus: int
    bounds: tuple[int, int]
    promises: Promises
    rates: Rates


@dataclass(slots=True, eq=False)
class Replica:
    """``nodes`` is where it is, by the names that the planner knows. It answers from ``ready_s`` on, and what it has
    until ``busy_s``."""

    placement: Placement
    nodes: tuple[str, ...]
    since_s: float
    ready_s: float
    busy_s: float = 0.0
    leaves: bool = False


@dataclass(slots=True)
class Fleet:
    """The replicas of one service, and what became of its requests so far."""

    plans: Plans
    requests: Sequence[Request]
    replicas: list[Replica] = field(default_factory=list)
    wanted: Scale = field(default_factory=lambda: Scale(0))
    target: int | None = None
    answered: int = 0
    kept: int = 0
    starts: int = 0
    gpu_s: float = 0.0
    stays: list[Stay] = field(default_factory=list)
    _next: int = 0
    _waiting: deque[Request] = field(default_factory=deque)
    _places_free: list[tuple[float, int, Replica]] = field(default_factory=list)
    _ends: list[float] = field(default_factory=list)
    _leaving: list[Replica] = field(default_factory=list)
    _arrivals: list[float] = field(default_factory=list)
    _mean: Traffic = field(default_factory=lambda: Traffic(0.0, 1.0, 1.0))
    _places: int = 1
    _token_s: float = 0.0

    def __post_init__(self) -> None:
        prompt = fmean(request.prompt for request in self.requests)
        answer = fmean(request.answer for request in self.requests)
        self._mean = Traffic(0.0, prompt, answer)
        self._places = slots(self.plans.promises, self._mean, self.plans.rates)
        self._token_s = self.plans.rates.service_s(self._mean, self._places) / max(answer, 1.0)
        self.wanted = Scale(self.plans.bounds[0])
        self._arrivals = [request.at_s for request in self.requests]

    def serve(self, until_s: float) -> None:
        """Answer what has arrived, on places that become free by ``until_s``."""
        while self._next < len(self.requests) and self.requests[self._next].at_s <= until_s:
            self._waiting.append(self.requests[self._next])
            self._next += 1
        while self._waiting and (place := self._next_place(until_s)):
            free_s, number, replica = place
            request = self._waiting.popleft()
            begins_s = max(free_s, request.at_s)
            ends_s = begins_s + self._takes_s(request)
            heappush(self._places_free, (ends_s, number, replica))
            heappush(self._ends, ends_s)
            replica.busy_s = max(replica.busy_s, ends_s)
            self.answered += 1
            self.kept += self._in_time(request, begins_s - request.at_s)

    def _next_place(self, until_s: float) -> tuple[float, int, Replica] | None:
        """The place that is free first, if that is when the first request that waits may begin by ``until_s``."""
        while self._places_free and self._places_free[0][2].leaves:
            heappop(self._places_free)
        if self._places_free and max(self._places_free[0][0], self._waiting[0].at_s) <= until_s:
            return heappop(self._places_free)
        return None

    def rescale(self, now: float) -> bool:
        """Ask how many replicas there should be. Whether that has changed."""
        before, plans = self.wanted.count, self.plans
        if plans.bounds[0] == plans.bounds[1]:
            return False
        self.wanted = scale(plans.bounds, plans.promises, self._traffic(now), plans.rates, self.wanted, now)
        return self.wanted.count != before

    def desired(self) -> Service:
        """The service as the planner is to see it: it owns room for as many replicas as it may have."""
        gang = Gang((Resources(gpus=self.plans.gpus),))
        return Service(self.plans.name, "1", gang, self.wanted.count, owned=self.plans.bounds[1])

    def status(self) -> ServiceStatus | None:
        """The deployment as the planner is to see it; None while it has no replicas."""
        if self.target is None and not self._leaving:
            return None
        nodes = tuple(node for replica in (*self.replicas, *self._leaving) for node in replica.nodes)
        ready, goes = len(self.replicas), self.target is None
        return ServiceStatus(self.plans.name, "1", self.target or 0, ready, nodes=nodes, removing=goes)

    def deploy(self, world: World, names: Sequence[str]) -> bool:
        """Come nearer to ``target``: give surplus replicas up, start missing ones where there is room. Whether all is
        as it should be."""
        while len(self.replicas) > (self.target or 0):
            self._stop(max(self.replicas, key=lambda one: (one.ready_s > world.now, one.since_s)))
        self.release(world)
        while len(self.replicas) < (self.target or 0):
            placement = world.pool.place(self.plans.gpus)
            if placement is None:
                return False
            self.starts += 1
            nodes = tuple(names[node] for node, _ in placement)
            replica = Replica(placement, nodes, world.now, world.now + self.plans.rates.start_s)
            self.replicas.append(replica)
            for place in range(self._places):
                heappush(self._places_free, (replica.ready_s, self.starts * self._places + place, replica))
        return True

    def release(self, world: World) -> bool:
        """Give the GPUs back of replicas that are to go and have answered what they had. Whether there were any."""
        done = [one for one in self._leaving if one.busy_s <= world.now]
        for replica in done:
            self._leaving.remove(replica)
            self._give_back(replica, world)
        return bool(done)

    def lose(self, node: int, world: World) -> None:
        """The machine is gone, and with it the replicas there. What they were answering is answered late by others."""
        for replica in [one for one in self.replicas if node in dict(one.placement)]:
            self._stop(replica)
        for replica in [one for one in self._leaving if node in dict(one.placement)]:
            self._leaving.remove(replica)
            self._give_back(replica, world)

    def close(self, world: World) -> None:
        """Note what the replicas that are left have held."""
        while self.replicas:
            self._stop(self.replicas[-1])
        for replica in self._leaving:
            self._give_back(replica, world)

    def unanswered(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def _stop(self, replica: Replica) -> None:
        """``replica`` gets no more requests, and is to go."""
        self.replicas.remove(replica)
        replica.leaves = True
        self._leaving.append(replica)

    def _give_back(self, replica: Replica, world: World) -> None:
        world.pool.give_back(replica.placement)
        self.gpu_s += self.plans.gpus * (world.now - replica.since_s)
        self.stays.append(Stay(self.plans.name, replica.placement, replica.since_s, world.now))

    def _takes_s(self, request: Request) -> float:
        """Seconds that ``request`` holds its place: its prompt, and its answer between those of others."""
        return request.prompt / self.plans.rates.prompt_tokens_per_s + request.answer * self._token_s

    def _in_time(self, request: Request, waited_s: float) -> bool:
        """Whether the promises were kept of a request that waited so long for its place."""
        rates, promises = self.plans.rates, self.plans.promises
        step_s = rates.step_s + self._places * rates.sequence_s
        first_s = waited_s + request.prompt / rates.prompt_tokens_per_s + step_s
        return waited_s <= promises.queue_s and first_s <= promises.first_token_s and self._token_s <= promises.token_s

    def _traffic(self, now: float) -> Traffic:
        """What arrived in the last window, and what waits and is answered now."""
        while self._ends and self._ends[0] <= now:
            heappop(self._ends)
        came = self._next - bisect_right(self._arrivals, now - WINDOW_S, hi=self._next)
        per_s = came / min(max(now, 1.0), WINDOW_S)
        return Traffic(per_s, self._mean.prompt, self._mean.answer, len(self._waiting), len(self._ends))
