"""A service in the twin: requests of a trace, the replicas that answer them, and how soon they did.

Each replica has so many places, a request takes one of them for as long as it is answered, in the order of arrival. How
many replicas there should be is what ``core.replicas`` says, from what was seen of the load.
"""

from __future__ import annotations

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
"""The load is what arrived in so many seconds; how it grows is seen from the same before."""

HOLD_S = 900.0
"""Replicas that were needed in the last quarter of an hour stay: bursts of requests come again and again."""


@dataclass(frozen=True, slots=True)
class Plans:
    """What is asked of a service: replicas of ``gpus`` GPUs on one node each, as few and as many as ``bounds`` say."""

    name: str
    gpus: int
    bounds: tuple[int, int]
    promises: Promises
    rates: Rates


@dataclass(slots=True)
class Replica:
    """``nodes`` is where it is, by the names that the planner knows."""

    placement: Placement
    nodes: tuple[str, ...]
    since_s: float


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
    _free_s: list[float] = field(default_factory=list)
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

    def serve(self, until_s: float) -> None:
        """Answer what has arrived, on places that become free by ``until_s``."""
        while self._next < len(self.requests) and self.requests[self._next].at_s <= until_s:
            self._waiting.append(self.requests[self._next])
            self._next += 1
        while self._waiting and self._free_s and max(self._free_s[0], self._waiting[0].at_s) <= until_s:
            request = self._waiting.popleft()
            begins_s = max(heappop(self._free_s), request.at_s)
            heappush(self._free_s, begins_s + self._takes_s(request))
            self.answered += 1
            self.kept += self._in_time(request, begins_s - request.at_s)

    def rescale(self, now: float) -> bool:
        """Ask how many replicas there should be. Whether that has changed."""
        before = self.wanted.count
        plans = self.plans
        self.wanted = scale(plans.bounds, plans.promises, self._traffic(now), plans.rates, self.wanted, now, HOLD_S)
        return self.wanted.count != before

    def desired(self) -> Service:
        """The service as the planner is to see it: it owns room for as many replicas as it may have."""
        gang = Gang((Resources(gpus=self.plans.gpus),))
        return Service(self.plans.name, "1", gang, self.wanted.count, owned=self.plans.bounds[1])

    def status(self) -> ServiceStatus | None:
        """The deployment as the planner is to see it; None while it has no replicas."""
        if self.target is None:
            return None
        nodes = tuple(node for replica in self.replicas for node in replica.nodes)
        return ServiceStatus(self.plans.name, "1", self.target, len(self.replicas), nodes=nodes)

    def deploy(self, world: World, names: Sequence[str]) -> bool:
        """Come nearer to ``target``: give surplus replicas up, start missing ones where there is room. Whether all is
        as it should be."""
        while len(self.replicas) > (self.target or 0):
            self._stop(self.replicas.pop(), world)
        while len(self.replicas) < (self.target or 0):
            placement = world.pool.place(self.plans.gpus)
            if placement is None:
                return False
            self.replicas.append(Replica(placement, tuple(names[node] for node, _ in placement), world.now))
            self.starts += 1
            for _ in range(self._places):
                heappush(self._free_s, world.now + self.plans.rates.start_s)
        return True

    def lose(self, node: int, world: World) -> None:
        """The machine is gone, and with it the replicas there. What they were answering is answered late by others."""
        for replica in [one for one in self.replicas if node in dict(one.placement)]:
            self.replicas.remove(replica)
            self._stop(replica, world)

    def close(self, world: World) -> None:
        """Note what the replicas that are left have held."""
        while self.replicas:
            self._stop(self.replicas.pop(), world)

    def unanswered(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def _stop(self, replica: Replica, world: World) -> None:
        """Its idle places go first; what it still answers is answered elsewhere, as drained replicas do."""
        world.pool.give_back(replica.placement)
        self._free_s = sorted(self._free_s)[self._places :]  # sorted, so still a heap
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
        """What arrived in the last window, and how much more than in the one before."""
        recent = self._arrived(now - WINDOW_S, now)
        growth = (recent - self._arrived(now - 2 * WINDOW_S, now - WINDOW_S)) / WINDOW_S**2
        return Traffic(recent / WINDOW_S, self._mean.prompt, self._mean.answer, growth, len(self._waiting))

    def _arrived(self, after_s: float, until_s: float) -> int:
        """How many of the requests came then."""
        count = 0
        for number in range(self._next - 1, -1, -1):
            if self.requests[number].at_s <= after_s:
                break
            count += self.requests[number].at_s <= until_s
        return count
