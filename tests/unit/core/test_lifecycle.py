"""What follows for a job from what is seen of its attempt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.core.lifecycle import BACKOFF_LONGEST_S, STRAY_GRACE_S, backoff_s, record, settle, stop
from llmos.core.types import Action, Attempt, AttemptPhase, Job, JobPhase, Verb
from tests.unit.core.values import NOW, cpus, job

OPEN = job("a", attempt=2, attempts=2, retries=2, opened_at=NOW - 50, placement=("n0",))


def seen(phase: AttemptPhase, **fields: object) -> Attempt:
    return Attempt("a", 2, phase, **fields)  # type: ignore[arg-type]


def close(phase: JobPhase, **fields: object) -> Action:
    return Action(Verb.CLOSE, "a", 2, phase=phase, **fields)  # type: ignore[arg-type]


def decided(job: Job, attempt: Attempt | None) -> Action | None:
    action = settle(job, attempt, NOW)
    return replace(action, why="") if action else None


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (None, None),
        (AttemptPhase.ABSENT, None),
        (AttemptPhase.STARTING, None),
        (AttemptPhase.RUNNING, None),
        (AttemptPhase.SUCCEEDED, close(JobPhase.SUCCEEDED)),
        (AttemptPhase.YIELDED, close(JobPhase.QUEUED)),
        (AttemptPhase.FAILED, close(JobPhase.QUEUED, failed=True, not_before=NOW + 2)),
        (AttemptPhase.LOST, close(JobPhase.QUEUED, failed=True, not_before=NOW + 2)),
    ],
)
def test_an_undisturbed_job(phase: AttemptPhase | None, expected: Action | None) -> None:
    assert decided(OPEN, seen(phase) if phase else None) == expected


OVER = {
    "cancelled": (replace(OPEN, cancelled=True), JobPhase.CANCELLED),
    "too long": (replace(OPEN, max_runtime_s=50.0), JobPhase.FAILED),
    "too long in all": (replace(OPEN, max_runtime_s=80.0, run_s=30.0), JobPhase.FAILED),
}


@pytest.mark.parametrize("why", OVER)
@pytest.mark.parametrize("phase", AttemptPhase)
def test_a_job_that_must_end(why: str, phase: AttemptPhase) -> None:
    overruled, final = OVER[why]
    action = decided(overruled, seen(phase))
    if phase is AttemptPhase.SUCCEEDED:
        assert action == close(JobPhase.SUCCEEDED)
    elif phase in (AttemptPhase.STARTING, AttemptPhase.RUNNING):
        assert action == Action(Verb.STOP, "a", 2)
    elif phase is AttemptPhase.ABSENT and why != "cancelled":
        assert action is None  # it never began
    else:
        assert action == close(final)


def test_a_job_without_an_open_attempt() -> None:
    waiting = job("a", attempts=1, max_runtime_s=10.0)
    assert settle(waiting, None, NOW) is None
    assert settle(replace(waiting, cancelled=True), None, NOW) == Action(
        Verb.CLOSE, "a", 0, phase=JobPhase.CANCELLED, why="cancelled"
    )
    assert settle(replace(waiting, run_s=10.0), None, NOW) == Action(
        Verb.CLOSE, "a", 0, phase=JobPhase.FAILED, why="ran for 10 s: max_runtime is 10 s"
    )


def test_time_before_an_attempt_began_is_not_counted() -> None:
    limited = replace(OPEN, max_runtime_s=50.0)
    assert settle(limited, None, NOW + 1e6) is None
    assert settle(limited, seen(AttemptPhase.RUNNING), NOW - 1) is None
    assert settle(limited, seen(AttemptPhase.RUNNING), NOW) is not None


@pytest.mark.parametrize("phase", AttemptPhase)
def test_what_is_seen_of_an_older_attempt_says_nothing(phase: AttemptPhase) -> None:
    assert settle(OPEN, Attempt("a", 1, phase), NOW) is None


def test_an_attempt_is_asked_once_and_killed_after_the_grace_period() -> None:
    living = seen(AttemptPhase.RUNNING)
    assert stop(living, "cancelled", NOW) == Action(Verb.STOP, "a", 2, why="cancelled")
    asked = replace(living, stopping_since=NOW)
    assert stop(asked, "cancelled", NOW + STRAY_GRACE_S - 1) is None
    killed = stop(asked, "cancelled", NOW + STRAY_GRACE_S)
    assert killed and killed.force and killed.why == "cancelled; asked to stop 60 s ago and still there"


def test_failures_are_counted_and_told() -> None:
    first = settle(OPEN, seen(AttemptPhase.FAILED, error="CUDA out of memory"), NOW)
    assert first and first.why == "attempt 2: CUDA out of memory; retry 1 of 2 in 2 s"
    lost = settle(replace(OPEN, failures=1), seen(AttemptPhase.LOST), NOW)
    assert lost and lost.not_before == NOW + 4
    assert lost.why == "attempt 2: ended without a result (its process or node is gone); retry 2 of 2 in 4 s"
    last = settle(replace(OPEN, failures=2), seen(AttemptPhase.FAILED), NOW)
    assert last and (last.phase, last.failed) == (JobPhase.FAILED, True)
    assert last.why == "attempt 2: failed (failure 3, retries: 2)"


def test_a_failure_that_would_repeat_itself_ends_the_job() -> None:
    action = settle(OPEN, seen(AttemptPhase.FAILED, error="no such file", retry=False), NOW)
    assert action and (action.phase, action.failed) == (JobPhase.FAILED, True)
    assert action.why == "attempt 2: no such file (not tried again: it would fail the same way)"


def test_the_pause_doubles_up_to_five_minutes() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 8, 9)] == [2, 4, 8, 256, BACKOFF_LONGEST_S]
    assert backoff_s(10**6) == BACKOFF_LONGEST_S


def test_a_start_is_recorded_before_it_happens() -> None:
    fresh = job("a", attempts=1, gang=cpus(1, 1))
    started = record(fresh, Action(Verb.START, "a", 2, ("n0", "n1")), NOW)
    assert started == replace(fresh, attempt=2, attempts=2, opened_at=NOW, placement=("n0", "n1"))
    again = record(started, Action(Verb.START, "a", 2, ("n2", "n2")), NOW + 9)
    assert again == replace(started, opened_at=NOW + 9, placement=("n2", "n2"))


def test_an_end_is_recorded_with_the_time_that_was_run() -> None:
    action = close(JobPhase.QUEUED, failed=True, not_before=NOW + 2)
    ended = record(replace(OPEN, run_s=10.0), action, NOW)
    assert ended == replace(OPEN, attempt=0, failures=1, not_before=NOW + 2, run_s=60.0, placement=())
    assert record(ended, replace(action, attempt=0, failed=False), NOW + 100).run_s == 60.0
    assert record(OPEN, Action(Verb.STOP, "a", 2), NOW) == OPEN


phases = st.sampled_from([*AttemptPhase, None])


@given(st.booleans(), st.integers(0, 3), st.none() | st.floats(0, 100), st.lists(phases, max_size=12))
def test_no_job_fails_more_often_than_its_retries_allow(
    cancelled: bool, retries: int, max_runtime_s: float | None, fates: list[AttemptPhase | None]
) -> None:
    mine = job("a", retries=retries, max_runtime_s=max_runtime_s, cancelled=cancelled)
    for i, phase in enumerate(fates):
        now = 10.0 * i
        if not mine.attempt:
            mine = record(mine, Action(Verb.START, "a", mine.attempts + 1, ("n0",)), now)
        action = settle(mine, Attempt("a", mine.attempt, phase) if phase else None, now)
        if action and action.phase and action.phase.final:
            return
        mine = record(mine, action, now) if action else mine
        assert mine.failures <= retries and mine.failures <= mine.attempts
        assert mine.attempt in (0, mine.attempts)
