from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmos.control import attempt
from llmos.core.types import AttemptPhase
from llmos.errors import DataError, WorkerLost
from llmos.layout import AttemptDirs


@pytest.fixture
def dirs(tmp_path: Path) -> AttemptDirs:
    return AttemptDirs(tmp_path / "1")


def phase(dirs: AttemptDirs, *, alive: bool, session: str = "today") -> AttemptPhase:
    return attempt.look("a-1", 1, dirs, alive=alive, session=session).phase


def test_an_attempt_has_one_runner(dirs: AttemptDirs) -> None:
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda i: attempt.claim(dirs, f"session {i}"), range(8)))
    assert claims.count(True) == 1 and dirs.started.read_text() == f"session {claims.index(True)}"


def test_what_directory_and_process_say_together(dirs: AttemptDirs) -> None:
    assert phase(dirs, alive=False) is AttemptPhase.ABSENT
    assert phase(dirs, alive=True) is AttemptPhase.STARTING
    attempt.claim(dirs, "today")
    assert phase(dirs, alive=True) is AttemptPhase.RUNNING
    assert phase(dirs, alive=False) is AttemptPhase.LOST
    assert phase(dirs, alive=False, session="tomorrow") is AttemptPhase.YIELDED  # the whole cluster was taken down
    attempt.finish(dirs, {"phase": "succeeded", "step": 5})
    assert phase(dirs, alive=True) is phase(dirs, alive=False, session="tomorrow") is AttemptPhase.SUCCEEDED


def test_when_it_was_first_asked_to_stop(dirs: AttemptDirs) -> None:
    attempt.claim(dirs, "today")
    assert attempt.look("a-1", 1, dirs, alive=True, session="today").stopping_since is None
    attempt.ask_to_stop(dirs)
    since = attempt.look("a-1", 1, dirs, alive=True, session="today").stopping_since
    assert since == pytest.approx(time.time(), abs=5)
    killed = attempt.look("a-1", 1, dirs, alive=False, session="today")  # it did not yield in time: no failure
    assert (killed.phase, killed.stopping_since) == (AttemptPhase.LOST, since)


@pytest.mark.parametrize(
    ("error", "text", "retry"),
    [
        (DataError("no text", hint="add some"), "no text; add some", False),
        (WorkerLost("rank 1 is gone"), "rank 1 is gone", True),
        (ZeroDivisionError(), "ZeroDivisionError", True),
    ],
)
def test_what_a_failure_says(dirs: AttemptDirs, error: Exception, text: str, retry: bool) -> None:
    attempt.finish(dirs, attempt.failure(error))
    seen = attempt.look("a-1", 1, dirs, alive=False, session="today")
    assert (seen.phase, seen.error, seen.retry) == (AttemptPhase.FAILED, text, retry)
