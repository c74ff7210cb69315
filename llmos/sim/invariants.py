"""What must hold of every plan, whatever the cluster and the workload.

Each function reads what a plan was made from and yields a sentence per violation. They account for themselves, with
no help from the planner's own bookkeeping, so a bug there cannot hide here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llmos.core.lifecycle import STOP_GRACE_S
from llmos.core.placement import place
from llmos.core.types import (
    Action,
    Attempt,
    AttemptPhase,
    Desired,
    Gang,
    Job,
    JobPhase,
    Plan,
    Resources,
    Service,
    Snapshot,
    Verb,
)

Invariant = Callable[[Desired, Snapshot, Plan], Iterator[str]]


def capacity_kept(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """No bundle is put where it does not fit, on top of all that is there."""
    free = _free(desired, snapshot)
    for action, job in _starts(desired, plan):
        for bundle, node in zip(job.gang.bundles, action.nodes, strict=False):
            if not bundle.fits_in(free.get(node, Resources())):
                yield f"{job.id}: {bundle} does not fit on {node} with {free.get(node)}"
            free[node] = free.get(node, Resources()) - bundle


def gangs_whole(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """A gang gets a node for every bundle, and only nodes that take work."""
    usable = {node.id for node in snapshot.nodes if not node.draining}
    for action, job in _starts(desired, plan):
        if len(action.nodes) != len(job.gang.bundles):
            yield f"{job.id}: {len(action.nodes)} of {len(job.gang.bundles)} bundles placed"
        if not usable.issuperset(action.nodes):
            yield f"{job.id}: placed on {set(action.nodes) - usable}, which take no work"


def attempts_new(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """No attempt number is started that ever ran, and no job has two attempts at once."""
    closed = {action.id for action in plan.actions if action.verb is Verb.CLOSE}
    started: set[str] = set()
    for action, job in _starts(desired, plan):
        seen = snapshot.attempts.get(job.id)
        reopened = job.attempt != 0 and job.id not in closed
        if action.attempt != (job.attempt if reopened else job.attempts + 1):
            yield f"{job.id}: attempt {action.attempt} started after {job.attempts}"
        if seen and (seen.alive or seen.number == action.attempt):
            yield f"{job.id}: attempt {action.attempt} started while {seen.number} is {seen.phase}"
        if job.id in started:
            yield f"{job.id}: started twice in one plan"
        started.add(job.id)


def order_kept(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """A job that may start, and could if the jobs before it ended, is not overtaken by a later one."""
    started = {job.id: job for _, job in _starts(desired, plan) if job.attempt == 0}
    room = _unserved(desired, snapshot)
    for job in _ready(desired, snapshot, plan):
        later = [other.id for other in started.values() if _turn(other) > _turn(job)]
        if job.id not in started and job.attempt == 0 and later and place(job.gang, room):
            yield f"{job.id} was overtaken by {later}"


def work_conserved(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """The first job in the queue starts as soon as it fits. (Told only where no service has a claim.)"""
    queue = sorted(_ready(desired, snapshot, plan), key=_turn)
    started = {job.id for _, job in _starts(desired, plan)}
    settled = not (desired.services or snapshot.services) and all(job.attempt == 0 for job in queue)
    if settled and queue and queue[0].id not in started and place(queue[0].gang, _free(desired, snapshot)):
        yield f"{queue[0].id} is first and fits, but was not started"


def reasons_given(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """Every job either runs, ends, starts now, or is told why it waits."""
    busy = {action.id for action in plan.actions if action.verb is Verb.START or (action.phase and action.phase.final)}
    for job in desired.jobs:
        seen = snapshot.attempts.get(job.id)
        runs = bool(seen and seen.alive and seen.number == job.attempt)
        if (job.id in busy or runs) == bool(plan.waiting.get(job.id)):
            yield f"{job.id}: waits without a reason, or has one and does not wait"


def ends_carried_out(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """What must end is asked to once, killed after the grace period, and closed once it is over; nothing else is."""
    stops = {(a.id, a.attempt): a.force for a in plan.actions if a.verb is Verb.STOP}
    closes = {action.id for action in plan.actions if action.verb is Verb.CLOSE}
    jobs = {job.id: job for job in desired.jobs}
    for id in jobs.keys() | snapshot.attempts.keys():
        job, seen = jobs.get(id), snapshot.attempts.get(id)
        current = seen if job and seen and seen.number == job.attempt else None
        unwanted = job is None or _overruled(job, current, snapshot.now)
        if job and (id in closes) != bool(not current.alive if current else unwanted):
            yield f"{id}: its end is not recorded, or is before it has come"
        asked_at = seen.stopping_since if seen else None
        due = asked_at is None or snapshot.now - asked_at >= STOP_GRACE_S
        ends = seen and seen.alive and (unwanted or seen is not current) and due
        expected = asked_at is not None if ends else None
        if seen and stops.get((id, seen.number)) != expected:
            yield f"{id}: stopped with force {stops.get((id, seen.number))}, expected {expected}"


def verdicts_right(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """A job ends as its attempt did: a result wins, then a cancel, then the time limit, then the retries."""
    closes = {action.id: action for action in plan.actions if action.verb is Verb.CLOSE}
    for job in desired.jobs:
        if close := closes.get(job.id):
            expected, failed = _verdict(job, snapshot)
            if (close.phase, close.failed) != (expected, failed):
                yield f"{job.id}: closed as {close.phase} (failed: {close.failed}), expected {expected} ({failed})"
            if failed and expected is JobPhase.QUEUED and close.not_before <= snapshot.now:
                yield f"{job.id}: retried without a pause"


def services_match(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """Exactly the deployments that differ from what is desired are changed."""
    told = {action.id: action.replicas for action in plan.actions if action.verb is Verb.DEPLOY}
    removed = {action.id for action in plan.actions if action.verb is Verb.REMOVE}
    wanted = {service.id: service for service in desired.services}
    for id in wanted.keys() | snapshot.services.keys():
        status, service = snapshot.services.get(id), wanted.get(id)
        same = status and service and (status.digest, status.target) == (service.digest, service.replicas)
        going = bool(status and status.removing)
        if (id in removed) != (service is None and not going):
            yield f"service {id}: removal is wrong"
        if told.get(id) != (service.replicas if service and not same and not going else None):
            yield f"service {id}: deployment is wrong"


INVARIANTS: tuple[Invariant, ...] = (
    capacity_kept,
    gangs_whole,
    attempts_new,
    order_kept,
    work_conserved,
    reasons_given,
    ends_carried_out,
    verdicts_right,
    services_match,
)


def violations(desired: Desired, snapshot: Snapshot, plan: Plan) -> list[str]:
    """What is wrong with ``plan``, each sentence led by the name of the invariant it breaks."""
    return [f"{rule.__name__}: {text}" for rule in INVARIANTS for text in rule(desired, snapshot, plan)]


def _starts(desired: Desired, plan: Plan) -> Iterator[tuple[Action, Job]]:
    jobs = {job.id: job for job in desired.jobs}
    return ((action, jobs[action.id]) for action in plan.actions if action.verb is Verb.START)


def _turn(job: Job) -> tuple[float, str]:
    return job.submitted_at, job.id


def _verdict(job: Job, snapshot: Snapshot) -> tuple[JobPhase, bool]:
    """How a job whose attempt (if any) is over must go on, and whether that counts as a failure."""
    seen = snapshot.attempts.get(job.id)
    current = seen if seen and seen.number == job.attempt else None
    phase = current.phase if current else AttemptPhase.ABSENT
    if phase is AttemptPhase.SUCCEEDED:
        return JobPhase.SUCCEEDED, False
    if _overruled(job, current, snapshot.now):
        return (JobPhase.CANCELLED if job.cancelled else JobPhase.FAILED), False
    if phase is AttemptPhase.YIELDED:
        return JobPhase.QUEUED, False
    hopeless = job.failures >= job.retries or (current is not None and not current.retry)
    return (JobPhase.FAILED if hopeless else JobPhase.QUEUED), True


def _overruled(job: Job, current: Attempt | None, now: float) -> bool:
    """Whether ``job`` must end because it was cancelled or has run for too long."""
    ran_s = job.run_s + (now - job.opened_at if current else 0.0)
    return job.cancelled or (job.max_runtime_s is not None and ran_s >= job.max_runtime_s)


def _ready(desired: Desired, snapshot: Snapshot, plan: Plan) -> list[Job]:
    """Jobs that wait for nothing but room."""
    ended = {action.id: action for action in plan.actions if action.verb is Verb.CLOSE}
    ready = []
    for job in desired.jobs:
        seen, close = snapshot.attempts.get(job.id), ended.get(job.id)
        held_until = close.not_before if close else job.not_before
        if (
            not (seen and seen.alive)
            and held_until <= snapshot.now
            and not (close and close.phase and close.phase.final)
        ):
            ready.append(job)
    return ready


def _free(desired: Desired, snapshot: Snapshot) -> dict[str, Resources]:
    """What living attempts, replicas and foreign work leave on each node that takes work.

    Nothing where something is that nobody asked for (any more): how much that holds cannot be known.
    """
    free = {node.id: node.total - node.foreign for node in snapshot.nodes if not node.draining}
    _take_services(desired.services, snapshot, free)
    for job in desired.jobs:
        seen = snapshot.attempts.get(job.id)
        if seen and seen.alive and seen.number == job.attempt:
            _take(job.gang, seen.nodes, free)
    unknown = _unknown(desired, snapshot)
    return {node: left for node, left in free.items() if node not in unknown}


def _unknown(desired: Desired, snapshot: Snapshot) -> set[str]:
    """The nodes of attempts and deployments that are not desired as they are."""
    attempts = {(job.id, job.attempt) for job in desired.jobs}
    digests = {(service.id, service.digest) for service in desired.services}
    strays = [
        seen.nodes for seen in snapshot.attempts.values() if seen.alive and (seen.job, seen.number) not in attempts
    ]
    leaving = [s.nodes for s in snapshot.services.values() if s.removing or (s.id, s.digest) not in digests]
    return {node for nodes in strays + leaving for node in nodes}


def _unserved(desired: Desired, snapshot: Snapshot) -> dict[str, Resources]:
    """What would be free if no job and nothing foreign ran, with every wanted replica up."""
    free = {node.id: node.total for node in snapshot.nodes if not node.draining}
    _take_services(desired.services, snapshot, free)
    for service in desired.services:
        status = snapshot.services.get(service.id)
        for _ in range(service.replicas - (status.ready if status else 0)):
            _take(service.gang, place(service.gang, free) or (), free)
    return free


def _take_services(services: tuple[Service, ...], snapshot: Snapshot, free: dict[str, Resources]) -> None:
    for service in services:
        status = snapshot.services.get(service.id)
        for i, node in enumerate(status.nodes if status else ()):
            _take(Gang((service.gang.bundles[i % len(service.gang.bundles)],)), (node,), free)


def _take(gang: Gang, nodes: tuple[str, ...], free: dict[str, Resources]) -> None:
    for bundle, node in zip(gang.bundles, nodes, strict=False):
        if node in free:
            free[node] -= bundle
