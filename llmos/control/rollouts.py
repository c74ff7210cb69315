"""Services in the control loop: what each tick wants of them, and what the front door is told.

What people asked for is in the store, how much is asked of a service in :mod:`llmos.control.scaling`, what there is in
the snapshot; :mod:`llmos.control.revisions` decides. What it remembers is lost with the process, and found again in
what is deployed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from llmos.control.revisions import Aim, Memory, Rollout, Seen, rollout
from llmos.control.scaling import Scaling
from llmos.control.store.services import Served, Services
from llmos.control.translate import deployment_digest, of_unit, replica_gang, unit
from llmos.core.placement import capacity, occupy, place
from llmos.core.types import Gang, Job, Service, Snapshot
from llmos.heartbeat import Route
from llmos.layout import Layout
from llmos.spec import Service as ServiceSpec


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided about a service: ``count`` replicas of its current revision and why, and its revisions'."""

    count: int
    current: int
    why: str = ""
    rollout: Rollout = field(default_factory=lambda: Rollout({}, {}))
    wake_s: float | None = None


class Rollouts:
    """What is wanted of the services of ``store``. One thread decides; what was ``decided`` is for all."""

    def __init__(self, store: Services, scaling: Scaling | None = None) -> None:
        self.scaling = scaling or Scaling()
        self.decided: Mapping[str, Decided] = {}
        self._store = store
        self._units: tuple[tuple[Served, ...], dict[str, Service]] = ((), {})

    def known(self) -> Mapping[str, Service]:
        """Every revision that the store knows, by unit: the number of its replicas says nothing."""
        served = self._store.served()
        if self._units[0] is not served:
            self._units = (
                served,
                {
                    unit(one.row["name"], number): Service(
                        unit(one.row["name"], number),
                        deployment_digest(spec),
                        replica_gang(spec),
                        0,
                        created_at=one.row["created_at"],
                    )
                    for one in served
                    for number, spec in one.revisions.items()
                },
            )
        return self._units[1]

    def decide(self, snapshot: Snapshot, jobs: Iterable[Job]) -> tuple[Service, ...]:
        """The units that are wanted now."""
        units, wanted, decided = self.known(), [], {}
        room = _Room(snapshot, {job.id: job for job in jobs}, units)
        for served in self._store.served():
            name, current = served.row["name"], served.row["current"]
            seen = _seen(name, snapshot, units)
            there = seen.get(current, Seen(0, 0, 0))
            count, why = self.scaling.count(name, served.spec, there.target, there.ready, snapshot.now)
            before = self.decided.get(name)
            done = rollout(
                _aim(served, count),
                seen,
                room.asked_by(unit(name, current)),
                before.rollout.memory if before else Memory(),
                snapshot.now,
            )
            decided[name] = Decided(count, current, why, done, self.scaling.wake_s(name))
            wanted += [_with(units[unit(name, r)], n, served, current) for r, n in done.replicas.items()]
            if current not in done.replicas:  # it has room of its own all the same
                wanted.append(_with(units[unit(name, current)], 0, served, current))
        self.scaling.forget(decided.keys())
        self.decided = decided
        return tuple(wanted)


def table(served: Iterable[Served], decided: Mapping[str, Decided], layout: Layout) -> dict[str, Route]:
    """What the front door is told of each service. Requests are held while a replica comes: from zero, or instead of
    one for which there was no room beside it. Models are in ``layout``."""
    routes = {}
    for one in served:
        found = decided.get(one.row["name"])
        weights = found.rollout.weights if found else {}
        asked = {deployment_digest(one.revisions[r]): r for r in weights if r in one.revisions}
        routes[one.row["name"]] = Route(
            int(one.row["created_at"]),
            one.spec.aliases,
            {digest: weights[r] for digest, r in asked.items()},
            holds=one.spec.replicas.min == 0 or bool(found and found.rollout.why),
            limits=one.spec.limits.model_dump(exclude_none=True),
            models={d: _model(one.revisions[r], layout) for d, r in asked.items() if _keeps(one.revisions[r])},
        )
    return routes


def _keeps(spec: ServiceSpec) -> bool:
    """Whether its replicas have a cache whose blocks have the names that the front door knows."""
    return spec.prefix_cache and spec.engine == "llmos"


def _model(spec: ServiceSpec, layout: Layout) -> str:
    """The directory of a revision's model: a revision names its version."""
    name, _, version = spec.model.partition("@")
    return str(layout.model(name, int(version)))


class _Room:
    """What is free, for as long as one tick takes."""

    def __init__(self, snapshot: Snapshot, jobs: Mapping[str, Job], units: Mapping[str, Service]) -> None:
        self._snapshot, self._jobs, self._units = snapshot, jobs, units

    def asked_by(self, current: str) -> Callable[[Collection[int]], bool]:
        """Whether another replica of the unit ``current`` fits when those of other revisions have gone."""
        service, _ = of_unit(current)

        def room(without: Collection[int]) -> bool:
            free = capacity(self._snapshot.nodes)
            for id, attempt in self._snapshot.attempts.items():
                if attempt.alive and (job := self._jobs.get(id)):
                    nodes = attempt.nodes or job.placement
                    occupy(free, job.gang_on(nodes), nodes)
            leaving = {unit(service, revision) for revision in without}
            for id, status in self._snapshot.services.items():
                if (known := self._units.get(id)) and id not in leaving:
                    occupy(free, _all(known.gang, status.nodes), status.nodes)
            return place(self._units[current].gang, free) is not None

        return room


def _all(gang: Gang, nodes: Collection[str]) -> Gang:
    """The bundles of all replicas that have a place on ``nodes``."""
    return Gang(gang.bundles * (len(nodes) // len(gang.bundles)))


def _seen(name: str, snapshot: Snapshot, units: Mapping[str, Service]) -> dict[int, Seen]:
    """The revisions of the service ``name`` that are deployed as they are known."""
    found = {}
    for id, status in snapshot.services.items():
        service, number = of_unit(id)
        if service == name and (known := units.get(id)) and known.digest == status.digest:
            placed = len(status.nodes) // len(known.gang.bundles)
            found[number] = Seen(status.target, placed, status.ready, status.removing)
    return found


def _aim(served: Served, count: int) -> Aim:
    row, spec = served.row, served.spec
    before = row["previous"] if row["previous"] in served.revisions else None
    weight = spec.canary.weight if spec.canary else 0.0
    return Aim(row["current"], count, before, row["canary"], weight, spec.keep_s)


def _with(one: Service, replicas: int, served: Served, current: int) -> Service:
    """The unit with so many replicas. The current revision owns room for as many as the service may have."""
    owns = one.id == unit(served.row["name"], current)
    return Service(one.id, one.digest, one.gang, replicas, one.created_at, served.spec.replicas.max if owns else 0)
