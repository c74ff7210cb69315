"""What follows for one job from what is seen of its attempt, and how an action changes the job's record.

The one rule that makes a job run neither twice nor never: an attempt is recorded as open before it is started, so after
a crash it is either seen (alive or ended) or ABSENT, and only an ABSENT one is started again, under its old number.
"""

from __future__ import annotations

from collections.abc import Collection

from llmos.core.types import Action, Attempt, AttemptPhase, Job, JobPhase, Verb

STRAY_GRACE_S = 60.0
"""How long an attempt that no job has open may take to end before it is killed. Others: ``Job.grace_s``."""
BACKOFF_FIRST_S = 2.0
BACKOFF_LONGEST_S = 300.0


def backoff_s(failures: int) -> float:
    """Seconds to wait before the next attempt after ``failures`` (1 or more): 2, 4, 8, … at most 300."""
    return min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 30), BACKOFF_LONGEST_S)


def settle(job: Job, seen: Attempt | None, now: float, gone: Collection[str] = ()) -> Action | None:
    """The STOP or CLOSE that ``job`` needs, given what is ``seen`` of its open attempt (None: nothing). None: carry on.

    Success wins over a cancel or a time limit that came later; they win over every other end. ``gone`` are nodes of the
    attempt that the cluster has no more: what ends because of that is no failure of the job's.
    """
    if seen and seen.number != job.attempt:
        seen = None  # another attempt's: it says nothing about this one
    phase = seen.phase if seen else AttemptPhase.ABSENT
    if phase is AttemptPhase.SUCCEEDED:
        return _close(job, JobPhase.SUCCEEDED, "finished")
    verdict = _overruled(job, now if phase is not AttemptPhase.ABSENT else job.opened_at)
    if seen and seen.alive:
        why = verdict[1] if verdict else "asked to yield"
        return stop(seen, why, now, job.grace_s) if verdict or seen.stopping_since is not None else None
    if verdict:
        return _close(job, *verdict)
    if phase is AttemptPhase.YIELDED:
        return _close(job, JobPhase.QUEUED, "yielded after a checkpoint")
    if seen and phase is AttemptPhase.LOST and seen.stopping_since is not None:
        return _close(job, JobPhase.QUEUED, "did not yield in time: goes on from its last checkpoint")
    if seen and phase in (AttemptPhase.FAILED, AttemptPhase.LOST):
        if gone and seen.retry:
            return _close(job, JobPhase.QUEUED, f"attempt {job.attempt}: its node {min(gone)} is gone")
        return _failure(job, seen, now)
    return None


def stop(seen: Attempt, why: str, now: float, grace_s: float | None = None) -> Action | None:
    """The STOP that a living attempt needs so that it ends: ask once, kill after the grace period."""
    if seen.stopping_since is None:
        return Action(Verb.STOP, seen.job, seen.number, why=why)
    if now - seen.stopping_since >= (STRAY_GRACE_S if grace_s is None else grace_s):
        why = f"{why}; asked to stop {now - seen.stopping_since:.0f} s ago and still there"
        return Action(Verb.STOP, seen.job, seen.number, force=True, why=why)
    return None


def record(job: Job, action: Action, now: float) -> Job:
    """``job`` as the store knows it once ``action`` is recorded. A CLOSE to a final phase ends the record instead."""
    match action.verb:
        case Verb.START:
            opened = max(job.attempts, action.attempt)
            return job.but(attempt=action.attempt, attempts=opened, opened_at=now, placement=action.nodes)
        case Verb.CLOSE:
            return job.but(
                attempt=0,
                failures=job.failures + action.failed,
                not_before=action.not_before,
                run_s=job.run_s + (now - job.opened_at if job.attempt else 0.0),
                placement=(),
                resumes=job.attempt != 0 and not action.failed,
            )
        case _:
            return job


def _overruled(job: Job, until: float) -> tuple[JobPhase, str] | None:
    """Why ``job``, whose open attempt has run ``until`` then, must end without a result, if it must."""
    if job.cancelled:
        return JobPhase.CANCELLED, "cancelled"
    ran_s = job.run_s + (until - job.opened_at if job.attempt else 0.0)
    if job.max_runtime_s is not None and ran_s >= job.max_runtime_s:
        return JobPhase.FAILED, f"ran for {ran_s:.0f} s: max_runtime is {job.max_runtime_s:.0f} s"
    return None


def _failure(job: Job, seen: Attempt, now: float) -> Action:
    """Another attempt after a pause, or the end when ``retries`` are used up or would be of no use."""
    failures = job.failures + 1
    lost = "ended without a result (its process or node is gone)"
    error = f"attempt {job.attempt}: {seen.error or (lost if seen.phase is AttemptPhase.LOST else 'failed')}"
    if not seen.retry:
        return _close(job, JobPhase.FAILED, f"{error} (not tried again: it would fail the same way)", failed=True)
    if failures > job.retries:
        return _close(job, JobPhase.FAILED, f"{error} (failure {failures}, retries: {job.retries})", failed=True)
    wait_s = backoff_s(failures)
    why = f"{error}; retry {failures} of {job.retries} in {wait_s:.0f} s"
    return _close(job, JobPhase.QUEUED, why, not_before=now + wait_s, failed=True)


def _close(job: Job, phase: JobPhase, why: str, *, not_before: float = 0.0, failed: bool = False) -> Action:
    return Action(Verb.CLOSE, job.id, job.attempt, phase=phase, not_before=not_before, failed=failed, why=why)
