"""The scheduler's decision, as one pure function.

Services take their resources first. Jobs are first in, first out, in gangs that start whole or not at all: the first
one that does not fit blocks those behind it, so a large gang is never starved by small ones. Two kinds of job do not
block: one that waits for its retry, and one that could not start even if all other jobs ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmos.core import reasons
from llmos.core.lifecycle import record, settle, stop
from llmos.core.placement import fits, place
from llmos.core.room import Room
from llmos.core.types import (
    Action,
    Attempt,
    Desired,
    Job,
    Plan,
    Service,
    ServiceStatus,
    Snapshot,
    Verb,
)


def plan(desired: Desired, snapshot: Snapshot, memo: object = None) -> Plan:
    """What to do now so that the cluster comes to look as ``desired``.

    Pure: nothing is changed, time is ``snapshot.now``. ``memo`` is that of the last plan; it saves work and never
    changes the actions. Planning again once the actions have taken effect gives none.
    """
    endings, jobs = _settle(desired.jobs, snapshot)
    strays = _strays(jobs, snapshot)
    room = Room(snapshot.nodes, memo)
    room.shut(node for attempt in strays for node in attempt.nodes)
    room.shut(node for status in _leaving(desired.services, snapshot) for node in status.nodes)
    for job in jobs:
        if attempt := _alive(job, snapshot):
            room.seat(job.gang, attempt.nodes if len(attempt.nodes) == len(job.gang.bundles) else job.placement)
    blocker = room.reserve(desired.services, snapshot.services)
    starts, waiting = _admit(jobs, room, blocker, snapshot)
    stops = [stop(attempt, "no job has this attempt open", snapshot.now) for attempt in strays]
    actions = [*filter(None, stops), *endings, *_services(desired.services, snapshot.services), *starts]
    return Plan(tuple(actions), waiting, room.memo())


def _settle(jobs: Iterable[Job], snapshot: Snapshot) -> tuple[list[Action], list[Job]]:
    """The STOPs and CLOSEs, and the unfinished jobs as they will be recorded after them."""
    actions: list[Action] = []
    unfinished: list[Job] = []
    for job in jobs:
        action = settle(job, snapshot.attempts.get(job.id), snapshot.now)
        if action:
            actions.append(action)
            job = record(job, action, snapshot.now)
        if not (action and action.phase and action.phase.final):
            unfinished.append(job)
    return actions, unfinished


def _alive(job: Job, snapshot: Snapshot) -> Attempt | None:
    """The open attempt of ``job``, if it holds resources."""
    attempt = snapshot.attempts.get(job.id)
    return attempt if attempt and attempt.alive and attempt.number == job.attempt else None


def _strays(jobs: Iterable[Job], snapshot: Snapshot) -> list[Attempt]:
    """Living attempts that no unfinished job has open."""
    open_attempts = {job.id: job.attempt for job in jobs}
    return [a for a in snapshot.attempts.values() if a.alive and open_attempts.get(a.job) != a.number]


def _leaving(services: Iterable[Service], snapshot: Snapshot) -> list[ServiceStatus]:
    """Deployments that are not, or not any more, what is desired: how much they hold is not known."""
    wanted = {service.id: service.digest for service in services}
    return [s for s in snapshot.services.values() if s.removing or wanted.get(s.id) != s.digest]


def _services(services: Iterable[Service], seen: Mapping[str, ServiceStatus]) -> list[Action]:
    """What makes the deployments equal the desired services."""
    wanted = {service.id for service in services}
    actions = [
        Action(Verb.REMOVE, status.id, why="no longer wanted")
        for status in sorted(seen.values(), key=lambda status: status.id)
        if status.id not in wanted and not status.removing
    ]
    for service in sorted(services, key=lambda service: (service.created_at, service.id)):
        if why := _outdated(service, seen.get(service.id)):
            actions.append(Action(Verb.DEPLOY, service.id, replicas=service.replicas, why=why))
    return actions


def _outdated(service: Service, status: ServiceStatus | None) -> str:
    """Why ``service`` must be deployed (again), or the empty string."""
    if status is None:
        return f"not deployed; {service.replicas} replica(s) wanted"
    if status.removing:
        return ""  # until the old one is gone
    if status.digest != service.digest:
        return "its spec changed"
    return f"replicas {status.target} -> {service.replicas}" if status.target != service.replicas else ""


def _admit(jobs: Iterable[Job], room: Room, blocker: str, snapshot: Snapshot) -> tuple[list[Action], dict[str, str]]:
    """Start jobs in order until one does not fit, and say of each that waits why. ``blocker`` goes before all jobs."""
    starts: list[Action] = []
    waiting: dict[str, str] = {}
    for job in sorted(jobs, key=_turn):
        if _alive(job, snapshot):
            continue
        if why := _not_ready(job, snapshot):
            waiting[job.id] = why
        elif blocker or not (nodes := _nodes_for(job, room)):
            waiting[job.id] = room.why_not(job.gang)
            if room.could_hold(job.gang):
                waiting[job.id] += f"; behind {blocker}" if blocker else ""
                blocker = blocker or job.id
        else:
            room.seat(job.gang, nodes)
            starts.append(_start(job, nodes))
    return starts, waiting


def _turn(job: Job) -> tuple[bool, float, str]:
    """First in, first out. An attempt that is open already has had its turn, even if it must be started again."""
    return (job.attempt == 0, job.submitted_at, job.id)


def _not_ready(job: Job, snapshot: Snapshot) -> str:
    """Why ``job`` may not start whatever is free, or the empty string."""
    attempt = snapshot.attempts.get(job.id)
    if attempt and attempt.alive:
        return f"attempt {attempt.number} is still ending"
    return reasons.held_back(job, snapshot.now) if snapshot.now < job.not_before else ""


def _nodes_for(job: Job, room: Room) -> tuple[str, ...] | None:
    """Where ``job`` can start now: on the nodes it was given before, if that was recorded and is possible."""
    return job.placement if job.placement and fits(job.gang, job.placement, room.free) else place(job.gang, room.free)


def _start(job: Job, nodes: tuple[str, ...]) -> Action:
    if job.attempt:
        return Action(
            Verb.START, job.id, job.attempt, nodes, why=f"attempt {job.attempt} had been recorded, but never began"
        )
    number = job.attempts + 1
    return Action(
        Verb.START, job.id, number, nodes, why=f"attempt {number}: {reasons.gang_size(job.gang)} on {_places(nodes)}"
    )


def _places(nodes: tuple[str, ...]) -> str:
    distinct = list(dict.fromkeys(nodes))
    return ", ".join(distinct[:4]) + (f" and {len(distinct) - 4} more nodes" if len(distinct) > 4 else "")
