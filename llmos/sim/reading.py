"""What the invariants read off a plan and its inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from llmos.core.queues import PATIENCE, UNKNOWN_S
from llmos.core.types import Action, Attempt, AttemptPhase, Desired, Job, JobPhase, Order, Plan, Snapshot, Verb


def starts(desired: Desired, plan: Plan) -> Iterator[tuple[Action, Job]]:
    """Each START with its job."""
    jobs = {job.id: job for job in desired.jobs}
    return ((action, jobs[action.id]) for action in plan.actions if action.verb is Verb.START)


def resizes(desired: Desired, snapshot: Snapshot, plan: Plan) -> list[tuple[str, int]]:
    """The open attempts that are asked to end although their jobs are to go on."""
    found = []
    for job in desired.jobs:
        seen = snapshot.attempts.get(job.id)
        if seen and seen.alive and seen.number == job.attempt and not overruled(job, seen, snapshot.now):
            asked = [a for a in plan.actions if a.verb is Verb.STOP and a.id == job.id and not a.force]
            found += [(job.id, seen.number)] if asked else []
    return found


def turn(job: Job, order: Order) -> tuple[int, bool, float, str]:
    """Orders the jobs of one tenant as they come to their turn."""
    place = job.submitted_at
    if order is Order.SHORTEST:
        runs_s = expected(job)
        gpus = max(1.0, sum(one.gpus for one in job.gang.bundles))
        place += PATIENCE * gpus * (UNKNOWN_S if math.isinf(runs_s) else runs_s)
    return -job.priority, not (job.resumes and order is Order.FIFO), place, job.id


def expected(job: Job) -> float:
    """How long ``job`` likely runs on, once it has run ``job.run_s``; infinity when nothing is known."""
    most = math.inf if job.max_runtime_s is None else max(job.max_runtime_s - job.run_s, 0.0)
    if job.estimate_s is None:
        return most
    ends = [end for end in (job.estimate_s, job.estimate_high_s) if end is not None and end > job.run_s]
    return min(ends[0] - job.run_s if ends else job.run_s, most)


def lasts(job: Job, *, high: bool) -> float:
    """How long an attempt of ``job`` runs: the median, or the ninth decile; infinity when nothing is known."""
    known = job.estimate_high_s if high and job.estimate_high_s is not None else job.estimate_s
    most = math.inf if job.max_runtime_s is None else max(job.max_runtime_s - job.run_s, 0.0)
    if known is None or (high and known <= job.run_s):
        return most
    return min(max(known - job.run_s, 0.0), most)


def doomed(desired: Desired, plan: Plan) -> set[str]:
    """The jobs that never ran and come after one that did not succeed, also through others."""
    ended = dict(desired.ended) | {a.id: a.phase for a in plan.actions if a.phase and a.phase.final}
    bad = {id for id, phase in ended.items() if phase is not JobPhase.SUCCEEDED}
    found: set[str] = set()
    while (
        more := {job.id for job in desired.jobs if not job.attempts and bad.union(found).intersection(job.after)}
        - found
    ):
        found |= more
    return found


def unmet(desired: Desired, plan: Plan, job: Job) -> bool:
    """Whether ``job`` must still wait for others that it comes after."""
    ended = dict(desired.ended) | {a.id: a.phase for a in plan.actions if a.phase and a.phase.final}
    return not job.attempts and any(ended.get(id) is not JobPhase.SUCCEEDED for id in job.after)


def verdict(job: Job, snapshot: Snapshot) -> tuple[JobPhase, bool]:
    """How a job whose attempt (if any) is over must go on, and whether that counts as a failure."""
    seen = snapshot.attempts.get(job.id)
    current = seen if seen and seen.number == job.attempt else None
    phase = current.phase if current else AttemptPhase.ABSENT
    if phase is AttemptPhase.SUCCEEDED:
        return JobPhase.SUCCEEDED, False
    if overruled(job, current, snapshot.now):
        return (JobPhase.CANCELLED if job.cancelled else JobPhase.FAILED), False
    late = phase is AttemptPhase.LOST and current is not None and current.stopping_since is not None
    there = {node.id for node in snapshot.nodes}
    gone = current is not None and current.retry and not there.issuperset(job.placement)
    if phase is AttemptPhase.YIELDED or late or gone:
        return JobPhase.QUEUED, False
    hopeless = job.failures >= job.retries or (current is not None and not current.retry)
    return (JobPhase.FAILED if hopeless else JobPhase.QUEUED), True


def overruled(job: Job, current: Attempt | None, now: float) -> bool:
    """Whether ``job`` must end because it was cancelled or has run for too long."""
    ran_s = job.run_s + (now - job.opened_at if current else 0.0)
    return job.cancelled or (job.max_runtime_s is not None and ran_s >= job.max_runtime_s)


def ready(desired: Desired, snapshot: Snapshot, plan: Plan) -> list[Job]:
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
            and not unmet(desired, plan, job)
        ):
            # one that was made to end is first in its queue
            resumes = close is not None and job.attempt != 0 and not close.failed
            ready.append(replace(job, resumes=True) if resumes else job)
    return ready
