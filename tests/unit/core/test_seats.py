"""What runs undisturbed costs a plan nothing, and the plan is the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmos.core import plan as planning
from llmos.core.free import GRAIN, Grid, added
from llmos.core.lifecycle import settle
from llmos.core.plan import Memo, plan
from llmos.core.seats import Seats
from llmos.core.types import Attempt, AttemptPhase, Desired, Job, Node, Plan, Resources, Snapshot
from tests.unit.core.values import NOW, cpus, job, node, running, see, told


def crowd(count: int, **fields: Any) -> tuple[list[Job], list[Attempt], list[Node]]:
    """Jobs of one CPU that run, each on its node of two."""
    pairs = [running(f"r{i}", f"n{i}") for i in range(count)]
    return (
        [replace(mine, **fields) for mine, _ in pairs],
        [seen for _, seen in pairs],
        [node(f"n{i}") for i in range(count)],
    )


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that were looked at, one by one."""
    seen: list[str] = []

    def noting(job: Job, *rest: Any) -> Any:
        seen.append(job.id)
        return settle(job, *rest)

    monkeypatch.setattr(planning, "settle", noting)
    return seen


def seats_of(made: Plan) -> Seats:
    assert isinstance(made.memo, Memo) and made.memo.seats
    return made.memo.seats


def test_only_what_changed_is_looked_at_again(looked_at: list[str]) -> None:
    jobs, attempts, nodes = crowd(9)
    first = plan(Desired(tuple(jobs)), see(nodes, *attempts))
    assert sorted(looked_at) == sorted(job.id for job in jobs)
    looked_at.clear()
    over = replace(attempts[3], phase=AttemptPhase.SUCCEEDED)
    desired = Desired((*jobs[:5], replace(jobs[5], cancelled=True), *jobs[6:], job("new", cpus(2))))
    snapshot = see(nodes, *attempts[:3], over, *attempts[4:], now=NOW + 1)
    made = plan(desired, snapshot, first.memo)
    assert sorted(looked_at) == ["r3", "r5"]
    assert told(made) == ["close r3-1 succeeded", "stop r5-1", "start new-1 on n3"]
    assert (made.actions, dict(made.waiting)) == (plan(desired, snapshot).actions, {})


def test_an_attempt_that_is_seen_anew_but_equal_has_not_changed(looked_at: list[str]) -> None:
    jobs, attempts, nodes = crowd(3)
    made = plan(Desired(tuple(jobs)), see(nodes, *attempts))
    looked_at.clear()
    plan(Desired(tuple(jobs)), see(nodes, *map(replace, attempts)), made.memo)
    assert looked_at == []


def test_what_may_run_only_for_so_long_is_looked_at_when_that_is_over(looked_at: list[str]) -> None:
    jobs, attempts, nodes = crowd(2, opened_at=NOW, max_runtime_s=100.0)
    desired = Desired(tuple(jobs))
    made = plan(desired, see(nodes, *attempts))
    looked_at.clear()
    for later, stops in ((98.0, 0), (99.5, 0), (100.0, 2)):
        made = plan(desired, see(nodes, *attempts, now=NOW + later), made.memo)
        assert len(told(made)) == stops and bool(looked_at) == (later > 99)


def test_sums_are_those_that_would_be_made_anew_whatever_came_and_went() -> None:
    """Ten tenths and the like have no rounding error, in whatever order they are taken and given back."""
    rng = np.random.default_rng(0)
    nodes = [Node(f"n{i}", Resources(cpus=64.1, gpus=8)) for i in range(4)]
    jobs: dict[str, Job] = {}
    attempts: dict[str, Attempt] = {}
    memo: object = None
    for step in range(60):
        if step % 3 == 2:
            gone = str(rng.choice(sorted(jobs)))
            del jobs[gone], attempts[gone]
        else:
            place = f"n{rng.integers(4)}"
            mine, seen = running(f"j{step}", place)
            jobs[mine.id], attempts[mine.id] = replace(mine, gang=cpus(float(rng.choice([0.1, 0.3, 1.7])))), seen
        memo = plan(Desired(tuple(jobs.values())), Snapshot(NOW, tuple(nodes), dict(attempts)), memo).memo
        assert isinstance(memo, Memo) and memo.seats
        held = [one.held for one in memo.seats.running.values()]
        assert (memo.seats.taken == added(held, np.zeros_like(memo.seats.taken))).all()
        assert memo.seats.held["default"][1] == memo.seats.taken.sum(axis=1).tolist()
    tenth = Grid(nodes).vector(Resources(cpus=0.1)) or [0.0]
    assert tenth[0] % GRAIN == 0 and abs(tenth[0] - 0.1) < GRAIN


def test_seats_are_of_one_cluster() -> None:
    jobs, attempts, nodes = crowd(3)
    made = plan(Desired(tuple(jobs)), see(nodes, *attempts))
    other = plan(Desired(tuple(jobs)), see([*nodes[1:], node("more")], *attempts), made.memo)
    assert seats_of(other).grid is not seats_of(made).grid
    assert seats_of(other).taken.sum() == 2 and seats_of(made).taken.sum() == 3
