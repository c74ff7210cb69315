"""The scheduler's decision, as one pure function.

Services take their resources first. Jobs wait in the queues of their tenants (``queues``) and start in gangs, whole
or not at all. The first ones that do not fit get a time and nodes that later ones must leave to them (``backfill``),
so a large gang is never starved by small ones. Some kinds of job block nobody: those that wait for their retry or for
other jobs, those whose tenant has no more, and those that could not start even if all other jobs ended. A job that
may run on more workers than its fewest gets what nobody waits for, and gives it back (``resize``); one of a lower
priority ends for one of a higher (``preempt``). What runs undisturbed is not looked at again (``seats``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import filterfalse

import numpy as np

from llmos.core import dependencies, reasons
from llmos.core.admission import Admission, Queue, promised_s
from llmos.core.backlog import Backlog, Waiting, sorted_out
from llmos.core.estimates import Estimate, Estimates, starts
from llmos.core.free import GPU, Grid
from llmos.core.lifecycle import record, settle, stop
from llmos.core.quarantine import quarantined
from llmos.core.resize import grow, grown, moved, stopped
from llmos.core.room import Memo as RoomMemo
from llmos.core.room import Room
from llmos.core.running import Running, oldest_first
from llmos.core.seats import Seats
from llmos.core.tenants import Ledger
from llmos.core.types import Action, Attempt, Desired, Job, Plan, Service, ServiceStatus, Snapshot, Verb
from llmos.core.wanted import wanted


@dataclass(frozen=True, slots=True)
class Memo:
    """What a plan worked out, for the next one."""

    backlog: Backlog = field(default_factory=Backlog)
    room: RoomMemo = field(default_factory=RoomMemo)
    seats: Seats | None = None
    placed: Mapping[str, Running] = field(default_factory=dict)


def plan(desired: Desired, snapshot: Snapshot, memo: object = None) -> Plan:
    """What to do now so that the cluster comes to look as ``desired``.

    Pure: nothing is changed, time is ``snapshot.now``. ``memo`` is that of the last plan; it saves work and never
    changes the actions. Planning again once the actions have taken effect gives none.
    """
    known = memo if isinstance(memo, Memo) else Memo()
    backlog = sorted_out(desired.jobs, known.backlog, desired.order)
    closed = _closed(desired, snapshot)
    room = Room(snapshot.nodes, known.room, closed)
    before = known.seats if known.seats and known.seats.grid is room.grid else Seats.empty(room.grid)
    calm = before.undisturbed(backlog.gone, snapshot)
    endings, others, held_back = _settle(backlog, calm, desired, snapshot)
    rest = [snapshot.attempts[id] for id in sorted(filterfalse(calm.attempts.__contains__, snapshot.attempts))]
    strays = _strays(others, rest)
    room.shut(node for attempt in strays for node in attempt.nodes)
    room.shut(node for status in _leaving(desired.services, snapshot) for node in status.nodes)
    ledger = Ledger(desired.tenants, room.grid, {job.tenant for job in others}.union(calm.held, backlog.queues))
    old = (known.placed, before.running) if room.grid is known.room.grid else ()
    begun = [one for job in others if (one := _running(job, room, snapshot, old))]
    running, moves, seats = _seated(calm, begun, endings, room, ledger, snapshot.now)
    claim = room.reserve(desired.services, snapshot.services)
    room.lending.lend(desired.services, room.unserved, running)
    queue, not_ready = _queue(backlog, others, held_back, rest, snapshot)
    admission = Admission(queue, room, ledger, running, claim, snapshot.now)
    admission.run(desired.reservations, desired.tried)
    growth = []
    if not (admission.first or _soon(not_ready, others, room)):
        admission.widen()
        growth = [] if strays or not seats.elastic else _growth(admission, room, ledger, snapshot.now)
    stops = [stop(attempt, "no job has this attempt open", snapshot.now) for attempt in strays]
    resizes = (*moves, *admission.stops, *growth, *_services(desired.services, snapshot.services))
    actions = (*filter(None, stops), *endings, *resizes, *_starts(admission, queue))
    unplaced = [*admission.blocked, *admission.impossible]
    nodes, waits = wanted(desired.kinds, room.grid, room.free, room.unserved, unplaced, snapshot.now)
    waiting = Waiting(partial(_told, admission, queue, held_back | not_ready, waits), backlog.queues, admission.placed)
    estimates = Estimates(partial(_estimates, admission, room, snapshot.now, desired.caution))
    memo = Memo(backlog, room.memo(), seats, admission.placed)
    return Plan(actions, waiting, memo, estimates, nodes, closed, room.lending.lent)


def _closed(desired: Desired, snapshot: Snapshot) -> dict[str, str]:
    """The nodes in quarantine, and why."""
    nodes = [node.id for node in snapshot.nodes if not node.draining] if desired.failures else []
    return quarantined(desired.failures, nodes, snapshot.now)


def _soon(not_ready: Mapping[str, str], watched: Iterable[Job], room: Room) -> bool:
    """Whether somebody waits for something else than room, and will soon be able to use some."""
    held = {job.id: job for job in watched if job.id in not_ready}
    return len(held) < len(not_ready) or any(room.could_hold(gang) for job in held.values() for gang in job.gangs)


def _settle(
    backlog: Backlog, calm: Seats, desired: Desired, snapshot: Snapshot
) -> tuple[list[Action], list[Job], dict[str, str]]:
    """The STOPs and CLOSEs, the watched jobs that are unfinished as they will be recorded after them, and why some of
    those must wait for others. Those that run as before are left out."""
    actions: list[Action] = []
    unfinished: list[Job] = []
    watched = [backlog.watched[id] for id in filterfalse(calm.running.__contains__, backlog.watched)]
    for job in sorted(watched, key=lambda job: (job.submitted_at, job.id)):  # in whatever order they came to be known
        action = settle(job, snapshot.attempts.get(job.id), snapshot.now, _gone(job, calm.grid))
        if action:
            actions.append(action)
        if not (action and action.phase and action.phase.final):
            unfinished.append(record(job, action, snapshot.now) if action else job)
    if not any(map(dependencies.dependent, unfinished)):
        return actions, unfinished, {}
    ended = {**desired.ended, **{a.id: a.phase for a in actions if a.phase and a.phase.final}}
    failed = dependencies.failed(filter(dependencies.dependent, unfinished), ended)
    done = {action.id for action in failed}
    unfinished = [job for job in unfinished if job.id not in done]
    return [*actions, *failed], unfinished, dependencies.unmet(filter(dependencies.dependent, unfinished), ended)


def _gone(job: Job, grid: Grid) -> set[str]:
    """The nodes of the open attempt that the cluster has no more."""
    return {node for node in job.placement if node not in grid.columns}.difference(grid.draining)


def _alive(job: Job, snapshot: Snapshot) -> Attempt | None:
    """The open attempt of ``job``, if it holds resources."""
    attempt = snapshot.attempts.get(job.id)
    return attempt if attempt and attempt.alive and attempt.number == job.attempt else None


def _running(job: Job, room: Room, snapshot: Snapshot, before: Iterable[Mapping[str, Running]]) -> Running | None:
    """``job`` and its living attempt, if it has one. ``before`` are those of the last plan."""
    attempt = _alive(job, snapshot)
    if attempt is None:
        return None
    seen = any(len(attempt.nodes) == len(gang.bundles) for gang in job.gangs)
    nodes = attempt.nodes if seen else job.placement
    gang, known = job.gang_on(nodes), next((some[job.id] for some in before if job.id in some), None)
    shape = room.shape(gang)
    same = known is not None and known.gang is gang and known.nodes == nodes
    return Running.of(job, attempt, nodes, shape, known.held if known and same else shape.held(room.grid.locate(nodes)))


def _seated(
    calm: Seats, begun: Sequence[Running], endings: Iterable[Action], room: Room, ledger: Ledger, now: float
) -> tuple[Sequence[Running], list[Action], Seats]:
    """What runs (``calm`` and ``begun``), with what it holds taken from ``room`` and counted in ``ledger``; the STOPs
    of what may not go on where it is, or at all; and those that need not be looked at again."""
    seats = calm.plus(begun)
    room.seat(seats.taken)
    ledger.seat(seats.held)
    running = list(seats.running.values())
    asked = {action.id for action in endings if action.verb is Verb.STOP}
    stops = list(_ousted(running, asked, room, ledger))
    disturbed = {one.job.id for one in begun if one.ending or one.job.id in asked}
    asked |= {action.id for action in stops}
    if asked:
        running = [one.asked(now) if one.job.id in asked else one for one in running]
    if ledger.budgets:
        rest = [(one, promised_s(one.job, one.ends_at(now) - now) - one.job.grace_s) for one in oldest_first(running)]
        ledger.promise_all((one.job.tenant, one.gpus * more) for one, more in rest if not one.ending)
    return running, stops, seats.without(disturbed)


def _ousted(running: Sequence[Running], asked: Collection[str], room: Room, ledger: Ledger) -> Iterator[Action]:
    """The STOPs of what runs beyond a budget or on a node that goes, and was not ``asked`` to end."""
    broke: set[str] = set()
    if ledger.budgets:
        eldest = oldest_first(running)
        ledger.promise_all((one.job.tenant, one.gpus * one.job.grace_s) for one in eldest)
        for one in eldest:
            if one.gpus and not one.ending and one.job.id not in asked and (why := ledger.exhausted(one.job)):
                broke.add(one.job.id)
                yield stopped(one, why)
    for action in moved(running, room.grid.draining):
        if action.id not in broke and action.id not in asked:
            yield action


def _strays(jobs: Iterable[Job], attempts: Iterable[Attempt]) -> list[Attempt]:
    """Living ones of ``attempts`` that no unfinished job has open."""
    open_attempts = {job.id: job.attempt for job in jobs}
    return [a for a in attempts if a.alive and open_attempts.get(a.job) != a.number]


def _leaving(services: Iterable[Service], snapshot: Snapshot) -> list[ServiceStatus]:
    """Deployments that are not, or not any more, what is desired: how much they hold is not known."""
    wanted = {service.id: service.digest for service in services}
    return [s for s in snapshot.services.values() if s.removing or wanted.get(s.id) != s.digest]


def _services(services: Iterable[Service], seen: Mapping[str, ServiceStatus]) -> list[Action]:
    """What makes the deployments equal the desired services. One without replicas has none."""
    wanted = {one.id for one in services if one.replicas or one.id not in seen or not seen[one.id].target}
    actions = [
        Action(Verb.REMOVE, status.id, why="no longer wanted")
        for status in sorted(seen.values(), key=lambda status: status.id)
        if status.id not in wanted and not status.removing
    ]
    for service in sorted(services, key=lambda service: (service.created_at, service.id)):
        if service.replicas and (why := _outdated(service, seen.get(service.id))):
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


def _queue(
    backlog: Backlog,
    watched: Iterable[Job],
    held_back: Mapping[str, str],
    attempts: Iterable[Attempt],
    snapshot: Snapshot,
) -> tuple[Queue, dict[str, str]]:
    """Who may start, and why others of the ``watched`` may not yet. ``attempts`` are those that are not calm."""
    not_ready: dict[str, str] = {}
    reopened: list[Job] = []
    more: list[Job] = []
    for job in watched:
        if job.id in held_back or _alive(job, snapshot):
            continue
        if why := _not_ready(job, snapshot):
            not_ready[job.id] = why
        else:
            (reopened if job.attempt else more).append(job)
    known = {job.id for job in watched}
    not_ready |= _still_ending(backlog, {a.job for a in attempts if a.alive and a.job not in known}, snapshot)
    reopened.sort(key=lambda job: (job.submitted_at, job.id))
    return Queue(reopened, backlog.queues, more, frozenset(not_ready), backlog.order), not_ready


def _still_ending(backlog: Backlog, alive: Collection[str], snapshot: Snapshot) -> dict[str, str]:
    """Why jobs of the long queue of which an attempt is ``alive`` may not start another one."""
    if not alive:
        return {}
    waiting = (one[-1] for queue in backlog.queues.values() for one in queue)
    return {job.id: _not_ready(job, snapshot) for job in waiting if job.id in alive}


def _not_ready(job: Job, snapshot: Snapshot) -> str:
    """Why ``job`` may not start whatever is free, or the empty string."""
    attempt = snapshot.attempts.get(job.id)
    if attempt and attempt.alive:
        return f"attempt {attempt.number} is still ending"
    return reasons.held_back(job, snapshot.now) if snapshot.now < job.not_before else ""


def _growth(admission: Admission, room: Room, ledger: Ledger, now: float) -> list[Action]:
    """The STOP of the first attempt that could go on larger, if there is one."""
    for one, gang in grown(admission.running, room.free, now, room.shape):
        more = [a - b for a, b in zip(room.shape(gang).total, one.total, strict=True)]
        refused = ledger.refusal(one.job, more, more[GPU] * one.job.grace_s)
        if not refused and room.lending.bears_growth(one, gang, room.free):
            return [grow(one, gang)]
    return []


def _starts(admission: Admission, queue: Queue) -> Iterator[Action]:
    """The START of each job that was placed."""
    recorded = {job.id for job in queue.reopened}
    for one in admission.placed.values():
        yield _start(one, recorded=one.job.id in recorded)


def _start(one: Running, *, recorded: bool) -> Action:
    number = one.attempt.number
    why = f"attempt {number}: {one.shape.words} on {_places(one.nodes)}"
    if recorded:
        why = f"attempt {number} had been recorded, but never began"
    return Action(Verb.START, one.job.id, number, one.nodes, why=why)


def _told(admission: Admission, queue: Queue, told: dict[str, str], waits: Mapping[str, str]) -> dict[str, str]:
    """Why each job waits. ``told`` are those that may not start, ``waits`` what some need besides room."""
    told = told | admission.explained()
    told |= {job.id: "waits for its turn" for job in queue.more if job.id not in told | admission.placed.keys()}
    return told | {id: told[id] + text for id, text in waits.items()}


def _estimates(admission: Admission, room: Room, now: float, caution: float) -> Iterator[tuple[str, Estimate]]:
    free = np.maximum(room.free, 0.0).sum(axis=1).tolist()
    needs = [(job, room.shape(job.gang).total) for job in admission.blocked]
    return starts(needs, admission.running, free, admission.promised, now, caution)


def _places(nodes: tuple[str, ...]) -> str:
    distinct = list(dict.fromkeys(nodes))
    return ", ".join(distinct[:4]) + (f" and {len(distinct) - 4} more nodes" if len(distinct) > 4 else "")
