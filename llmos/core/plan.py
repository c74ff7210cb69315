"""The scheduler's decision, as one pure function.

Services take their resources first. Jobs are first in, first out, in gangs that start whole or not at all: the first
one that does not fit blocks those behind it, so a large gang is never starved by small ones. Two kinds of job do not
block: one that waits for its retry, and one that could not start even if all other jobs ended. A job that may run on
more workers than its fewest gets what nobody waits for, and gives it back (``resize``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmos.core import reasons
from llmos.core.lifecycle import record, settle, stop
from llmos.core.placement import fits
from llmos.core.resize import Running, grown, largest, moved, shrunk, smallest
from llmos.core.room import Claim, Room
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
    running = [one for job in jobs if (one := _running(job, snapshot))]
    for one in running:
        room.seat(one.gang, one.nodes)
    starts, waiting, first = _admit(jobs, room, room.reserve(desired.services, snapshot.services), snapshot)
    stops = [stop(attempt, "no job has this attempt open", snapshot.now) for attempt in strays]
    resizes = _resizes(running, endings, room, snapshot, first, idle=not (strays or _queue(waiting, jobs, room)))
    services = _services(desired.services, snapshot.services)
    return Plan((*filter(None, stops), *endings, *resizes, *services, *starts), waiting, room.memo())


def _settle(jobs: Iterable[Job], snapshot: Snapshot) -> tuple[list[Action], list[Job]]:
    """The STOPs and CLOSEs, and the unfinished jobs as they will be recorded after them."""
    actions: list[Action] = []
    unfinished: list[Job] = []
    there = {node.id for node in snapshot.nodes}
    for job in jobs:
        action = settle(job, snapshot.attempts.get(job.id), snapshot.now, set(job.placement) - there)
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


def _running(job: Job, snapshot: Snapshot) -> Running | None:
    """``job`` and its living attempt, if it has one."""
    attempt = _alive(job, snapshot)
    if attempt is None:
        return None
    seen = any(len(attempt.nodes) == len(gang.bundles) for gang in job.gangs)
    return Running(job, attempt, attempt.nodes if seen else job.placement)


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


def _admit(
    jobs: Iterable[Job], room: Room, first: Claim | None, snapshot: Snapshot
) -> tuple[list[Action], dict[str, str], Claim | None]:
    """Start jobs in order until one does not fit, and say of each that waits why. ``first`` goes before all jobs.

    Each gets its smallest gang. What is left goes to those that can use it, in order, if nobody waits. The claim is
    that of the first in the queue.
    """
    placed: dict[str, tuple[Job, tuple[str, ...]]] = {}
    waiting: dict[str, str] = {}
    for job in sorted(jobs, key=_turn):
        if _alive(job, snapshot):
            continue
        if why := _not_ready(job, snapshot):
            waiting[job.id] = why
        elif first or not (nodes := _nodes_for(job, room)):
            waiting[job.id] = room.why_not(job.gang)
            if any(map(room.could_hold, job.gangs)):
                waiting[job.id] += f"; behind {first.who}" if first else ""
                first = first or Claim(job.id, job.gangs)
        else:
            room.seat(job.gang_on(nodes), nodes)
            placed[job.id] = job, nodes
    if not _queue(waiting, jobs, room):
        placed = {id: (job, _widened(job, nodes, room)) for id, (job, nodes) in placed.items()}
    return [_start(job, nodes) for job, nodes in placed.values()], waiting, first


def _queue(waiting: Iterable[str], jobs: Iterable[Job], room: Room) -> bool:
    """Whether somebody waits who could start if others ended, or will soon."""
    by_id = {job.id: job for job in jobs}
    return any(any(map(room.could_hold, by_id[id].gangs)) for id in waiting)


def _widened(job: Job, nodes: tuple[str, ...], room: Room) -> tuple[str, ...]:
    """``nodes``, where ``job`` has its smallest gang, or those of a larger one for which there is room, too."""
    if not job.larger:
        return nodes
    room.leave(job.gang_on(nodes), nodes)
    recorded = job.placement if fits(job.gang_on(job.placement), job.placement, room.free) else None
    nodes = recorded or largest(job, room.free) or nodes
    room.seat(job.gang_on(nodes), nodes)
    return nodes


def _resizes(
    running: list[Running], endings: list[Action], room: Room, snapshot: Snapshot, first: Claim | None, *, idle: bool
) -> list[Action]:
    """The STOPs after which jobs go on elsewhere, smaller or larger."""
    moves = list(moved(running, {node.id for node in snapshot.nodes if node.draining}))
    asked = {action.id for action in (*endings, *moves) if action.verb is Verb.STOP}
    running = [one.asked(snapshot.now) if one.job.id in asked else one for one in running]
    moves = [action for action in moves if action.id not in {ending.id for ending in endings}]
    if first:
        return [*moves, *shrunk(running, room.free, first.who, first.gangs)]
    return [*moves, *(grown(running, room.free, snapshot.now) if idle else [])]


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
    return job.placement if fits(job.gang, job.placement, room.free) else smallest(job, room.free)


def _start(job: Job, nodes: tuple[str, ...]) -> Action:
    if job.attempt:
        return Action(
            Verb.START, job.id, job.attempt, nodes, why=f"attempt {job.attempt} had been recorded, but never began"
        )
    number = job.attempts + 1
    return Action(
        Verb.START,
        job.id,
        number,
        nodes,
        why=f"attempt {number}: {reasons.gang_size(job.gang_on(nodes))} on {_places(nodes)}",
    )


def _places(nodes: tuple[str, ...]) -> str:
    distinct = list(dict.fromkeys(nodes))
    return ", ".join(distinct[:4]) + (f" and {len(distinct) - 4} more nodes" if len(distinct) > 4 else "")
