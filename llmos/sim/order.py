"""What must hold of the order in which jobs start: who goes first, and who may be let in before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial

from llmos.core.types import Desired, Job, Plan, Resources, Snapshot, Verb
from llmos.sim.accounting import free, placeable, sized, take, unserved
from llmos.sim.limits import limited
from llmos.sim.reading import lasts, ready, starts, turn, unmet

Release = tuple[float, Job, tuple[str, ...]]


def order_kept(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """The first of a queue that has to wait is not delayed by one behind it that starts now.

    Both times are by what is known of run times. Told where there is one tenant, no service, and nobody is asked to
    end; and of equal bundles, for which it can be told exactly whether they fit.
    """
    if not _plain(desired, snapshot, plan):
        return
    started = {job.id: (job, action.nodes) for action, job in starts(desired, plan)}
    by_turn = partial(turn, order=desired.order)
    room = unserved(desired, snapshot)
    queue = sorted((job for job in ready(desired, snapshot, plan) if job.attempt == 0), key=by_turn)
    blocked = [job for job in queue if job.id not in started and placeable(job, room, snapshot)]
    if not blocked or blocked[0].larger or len(set(blocked[0].gang.bundles)) > 1:
        return
    first = blocked[0]
    order = {job.id: by_turn(job) for job in queue}
    later = {id: one for id, one in started.items() if id in order and order[id] > by_turn(first)}
    alone = _earliest(first, desired, snapshot, {id: one for id, one in started.items() if id not in later})
    beside = _earliest(first, desired, snapshot, started)
    if beside > alone + 1e-6:
        yield f"{first.id}, which could start at {alone}, starts at {beside}, overtaken by {sorted(later)}"


def work_conserved(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """The first job in the queue starts as soon as it fits. (Told where there is one tenant, and no service has a
    claim.)"""
    queue = sorted(ready(desired, snapshot, plan), key=partial(turn, order=desired.order))
    started = {job.id for _, job in starts(desired, plan)}
    settled = not (desired.services or snapshot.services) and all(job.attempt == 0 for job in queue)
    one = len({job.tenant for job in desired.jobs}) < 2 and not plan.quarantined
    if not (settled and one and queue) or queue[0].id in started or limited(desired, queue[0]):
        return
    if placeable(queue[0], free(desired, snapshot), snapshot):
        yield f"{queue[0].id} is first and fits, but was not started"


def dependencies_kept(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """No job starts before those that it comes after have succeeded."""
    for _, job in starts(desired, plan):
        if unmet(desired, plan, job):
            yield f"{job.id}: started, although {job.after} have not all succeeded"


def _plain(desired: Desired, snapshot: Snapshot, plan: Plan) -> bool:
    """Whether the first in the queue and what it waits for can be told without the planner's help."""
    if desired.services or snapshot.services or plan.quarantined or len({job.tenant for job in desired.jobs}) > 1:
        return False
    limits = any(t.quota or t.borrow_limit is not None or t.budget_gpu_s is not None for t in desired.tenants)
    stops = any(action.verb is Verb.STOP for action in plan.actions)
    ending = any(seen.alive and seen.stopping_since is not None for seen in snapshot.attempts.values())
    known = {(job.id, job.attempt) for job in desired.jobs}
    strays = any(seen.alive and (seen.job, seen.number) not in known for seen in snapshot.attempts.values())
    return not (limits or stops or ending or strays)


def _earliest(
    job: Job, desired: Desired, snapshot: Snapshot, started: Mapping[str, tuple[Job, tuple[str, ...]]]
) -> float:
    """When ``job`` fits, if ``started`` start now; infinity if that is known of no time, a larger number if never."""
    releases: list[Release] = []
    left = free(desired, snapshot)
    for other in desired.jobs:
        seen = snapshot.attempts.get(other.id)
        if seen and seen.alive and seen.number == other.attempt:
            releases.append((_end(other, job, snapshot.now), other, seen.nodes))
    for other, nodes in started.values():
        take(sized(other, nodes), nodes, left)
        releases.append((snapshot.now + lasts(other, high=True), other, nodes))
    if placeable(job, left, snapshot):
        return snapshot.now
    for at, other, nodes in sorted(releases, key=lambda release: (release[0], release[1].id)):
        if math.isinf(at):
            break
        give(other, nodes, left)
        if placeable(job, left, snapshot):
            return at
    everything = unserved(desired, snapshot)
    for other, nodes in started.values():
        if turn(other, desired.order) > turn(job, desired.order):
            take(sized(other, nodes), nodes, everything)
    return 1e300 if placeable(job, everything, snapshot) else math.inf


def give(job: Job, nodes: tuple[str, ...], free: dict[str, Resources]) -> None:
    """Give back to ``free`` what ``job`` holds on ``nodes``."""
    for bundle, node in zip(sized(job, nodes).bundles, nodes, strict=False):
        if node in free:
            free[node] += bundle


def _end(runs: Job, waits: Job, now: float) -> float:
    """When what ``runs`` counts as ended for one that ``waits``: what started since that came, not before it is
    sure."""
    fresh = runs.opened_at >= waits.submitted_at
    end = runs.opened_at + lasts(runs, high=fresh)
    return math.inf if fresh and end <= now else max(end, now)
