"""Reservations: later jobs start if they delay nobody, and large gangs start in bounded time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmos.core.backfill import Horizon
from llmos.core.estimates import Estimates
from llmos.core.plan import plan
from llmos.core.releases import Releases, Times
from llmos.core.types import Attempt, Desired, Gang, Job, JobPhase, Node, Resources
from llmos.sim.cluster import Outcome, SimCluster
from llmos.sim.simulation import Simulation
from tests.unit.core.values import NOW, cpus, decide, job, node, running, see, told


def runs(id: str, *nodes: str, ends_in: float | None = None, **fields: Any) -> tuple[Job, Attempt]:
    """A job of one CPU on each of ``nodes``, opened 100 s ago, that is expected to end in so long."""
    mine, attempt = running(id, *nodes)
    estimate = None if ends_in is None else ends_in + 100
    return replace(mine, opened_at=NOW - 100, estimate_s=estimate, **fields), attempt


def test_a_short_job_starts_before_a_blocked_one_that_it_does_not_delay() -> None:
    busy, attempt = runs("busy", "n", ends_in=60)
    big = job("big", cpus(2), at=1)
    made = decide(see([node("n")], attempt), busy, big, job("short", at=2, estimate_s=59.0))
    assert told(made) == ["start short-1 on n"]
    assert made.waiting == {"big": "needs 1 bundle of 2 CPUs; 0 CPUs free of 2; next release 00:17 by short"}
    for estimate in (61.0, None):
        made = decide(see([node("n")], attempt), busy, big, job("long", at=2, estimate_s=estimate))
        assert told(made) == [] and made.waiting["long"].endswith("next release 00:17 by busy; behind big")


def test_what_counts_is_the_time_that_is_kept_nine_times_of_ten() -> None:
    busy, attempt = runs("busy", "n", ends_in=60)
    unsure = job("unsure", at=2, estimate_s=10.0, estimate_high_s=100.0)
    assert told(decide(see([node("n")], attempt), busy, job("big", cpus(2), at=1), unsure)) == []


def test_a_long_job_starts_beside_the_nodes_that_are_kept() -> None:
    busy, attempt = runs("busy", "n0", "n0")
    made = decide(see([node("n0"), node("n1", 1)], attempt), busy, job("big", cpus(2), at=1), job("small", at=2))
    assert told(made) == ["start small-1 on n1"]


@pytest.mark.parametrize(("reservations", "starts"), [(1, True), (2, False), (1000, False)])
def test_how_many_blocked_jobs_are_protected(reservations: int, starts: bool) -> None:
    one, seen = runs("one", "n0", ends_in=60)
    two, also = runs("two", "n1", ends_in=60)
    blocked = [job("big", cpus(2), at=1), job("next", cpus(2), at=2)]
    desired = Desired((one, two, *blocked, job("small", at=3)), reservations=reservations)
    made = plan(desired, see([node("n0"), node("n1")], seen, also))
    assert bool(told(made)) == starts


def test_estimated_starts_follow_from_the_ends_of_what_runs() -> None:
    busy, attempt = runs("busy", "n", "n", ends_in=60)
    first = job("first", cpus(2), at=1, estimate_s=100.0)
    made = decide(see([node("n")], attempt), busy, first, job("second", cpus(2), at=2))
    assert made.estimates == {"first": (NOW + 60, NOW + 60), "second": (NOW + 160, NOW + 160)}
    unsure = replace(busy, estimate_high_s=500.0)
    made = decide(see([node("n")], attempt), unsure, first, job("second", cpus(2), at=2))
    median, high = made.estimates["first"]
    assert NOW + 60 < median < NOW + 400 < high  # it has run for so long that it is likely to run longer still
    assert decide(see([node("n")], attempt), replace(busy, estimate_s=None), first).estimates == {}


def large_starts(nodes: int, size: float, large: Gang, known: bool) -> list[float]:
    """When a large job that comes after 105 s starts, if small ones come faster than they end, all the time.

    Each runs for 100 s. They say that they run for 50 s, or nothing.
    """
    sim = SimCluster([Node(f"n{i}", Resources(cpus=size)) for i in range(nodes)], lambda id, _: Outcome(100.0))
    simulation = Simulation(sim)
    for i in range(80):
        simulation.submit(job(f"small{i}", estimate_s=50.0 if known else None))
        if i == 20:
            simulation.submit(job("large", large, estimate_s=100.0))
        simulation.run(until=5.0 * (i + 1), interval_s=5.0)
    assert sum(phase is JobPhase.SUCCEEDED for phase in simulation.ended.values()) > 15
    return [at for at, action in simulation.history if action.id == "large" and action.nodes]


CROWDS = [
    (4, 4.0, cpus(4, 4, 4), True),
    (4, 4.0, cpus(4, 4, 4), False),
    (1, 8.0, cpus(6), True),
    (1, 8.0, cpus(6), False),
]


@pytest.mark.parametrize("crowd", CROWDS)
def test_a_large_gang_starts_in_bounded_time_while_small_jobs_keep_coming(crowd: tuple[Any, ...]) -> None:
    (start,) = large_starts(*crowd)
    assert start <= 105.0 + 210.0  # what ran when it came has ended, and what was let in then, too


def _any_time(releases: Releases, since: float) -> Times:
    return np.where(np.isinf(releases._likely), np.nan, releases._likely)


@pytest.mark.parametrize("crowd", CROWDS[2:])
def test_it_would_starve_if_what_was_let_in_beside_it_counted_as_gone(
    crowd: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Releases, "ends", _any_time)
    assert large_starts(*crowd) == []


@pytest.mark.parametrize("crowd", CROWDS)
def test_it_would_starve_without_a_reservation(crowd: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Horizon, "reserve", lambda horizon, shape, since: None)
    assert large_starts(*crowd) == []


def test_a_reservation_beyond_foreign_work_is_kept() -> None:
    taken = node("n", 2, foreign=Resources(cpus=1))
    made = decide(see([taken]), job("big", cpus(2), at=1), job("small", at=2, estimate_s=1.0))
    assert told(made) == []


def test_estimates_are_worked_out_as_far_as_somebody_asks() -> None:
    worked_out: list[str] = []

    def each() -> Iterator[tuple[str, tuple[float, float]]]:
        for id in "abc":
            worked_out.append(id)
            yield id, (1.0, 2.0)

    estimates = Estimates(each)
    assert worked_out == [] and estimates["b"] == (1.0, 2.0) and worked_out == ["a", "b"]
    assert "x" not in estimates and estimates.get("a") == (1.0, 2.0)
    assert list(estimates) == ["a", "b", "c"] and len(estimates) == 3 and worked_out == ["a", "b", "c"]
