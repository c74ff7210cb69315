"""Jobs that come after others: they wait until all those have succeeded, and fail when one of them has not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from llmos.core.types import Action, Job, JobPhase, Verb

_ENDS = {JobPhase.FAILED: "failed", JobPhase.CANCELLED: "was cancelled"}


def dependent(job: Job) -> bool:
    """Whether ``job`` still has others to wait for. One that has had an attempt waits for none any more."""
    return bool(job.after) and not job.attempts and not job.attempt


def failed(jobs: Iterable[Job], ended: Mapping[str, JobPhase]) -> list[Action]:
    """The CLOSE of each of ``jobs`` that comes after one that did not succeed, also through others of them.

    ``ended`` are the phases of jobs that have ended.
    """
    followers: dict[str, list[Job]] = {}
    for job in jobs:
        for other in job.after:
            followers.setdefault(other, []).append(job)
    bad = [(id, phase) for id, phase in ended.items() if phase in _ENDS and id in followers]
    closes: dict[str, Action] = {}
    while bad:
        id, phase = bad.pop()
        for job in followers.get(id, ()):
            why = f"{id}, which it comes after, {_ENDS[phase]}"
            before = closes.get(job.id)
            if before is None:
                bad.append((job.id, JobPhase.FAILED))
            if before is None or why < before.why:  # the same one to blame in whatever order they are looked at
                closes[job.id] = Action(Verb.CLOSE, job.id, phase=JobPhase.FAILED, why=why)
    return [closes[id] for id in sorted(closes)]


def unmet(jobs: Iterable[Job], ended: Mapping[str, JobPhase]) -> dict[str, str]:
    """Why each of ``jobs`` must wait for others, of those that must."""
    jobs = list(jobs)
    waiting = {}
    for job in jobs:
        missing = [id for id in job.after if ended.get(id) is not JobPhase.SUCCEEDED]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            waiting[job.id] = f"comes after {missing[0]}{more}, not finished yet"
    loop = cycle({job.id: job.after for job in jobs if job.id in waiting})
    waiting |= {id: f"waits for itself: {' after '.join([*loop, loop[0]])}" for id in loop}
    return waiting


def cycle(after: Mapping[str, Iterable[str]]) -> list[str]:
    """Jobs that come after one another in a circle, if there are any. ``after`` says what each comes after."""
    try:
        TopologicalSorter(after).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[-1:0:-1]
    return []
