"""Shortest first: who goes first, and how free room comes together for a gang."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmos.core.gather import SETTLED_S
from llmos.core.plan import plan
from llmos.core.queues import PATIENCE
from llmos.core.types import Attempt, AttemptPhase, Desired, Job, Order, Plan
from llmos.sim.cluster import Outcome, SimCluster
from llmos.sim.simulation import Simulation
from tests.unit.core.values import NOW, cpus, job, node, running, see, told

FOUR = [node(f"n{i}", 4) for i in range(3)]


def ask(jobs: list[Job], attempts: list[Attempt], order: Order = Order.SHORTEST, **fields: Any) -> Plan:
    return plan(Desired(tuple(jobs), order=order, **fields), see(FOUR, *attempts))


def holes(**fields: Any) -> tuple[list[Job], list[Attempt]]:
    """Three nodes of four CPUs with two, two and one left: five in all."""
    pairs = [running(f"r{i}", *[at] * size) for i, (at, size) in enumerate([("n0", 2), ("n1", 2), ("n2", 3)])]
    fields = {"opened_at": NOW - 2 * SETTLED_S, "estimate_s": 1e5} | fields
    return [replace(mine, **fields) for mine, _ in pairs], [seen for _, seen in pairs]


def test_the_shortest_goes_first_until_others_have_waited_long_enough() -> None:
    def first(*jobs: Job, order: Order = Order.SHORTEST) -> str:
        made = plan(Desired(jobs, order=order), see([node("n", 1)]))
        return made.actions[0].id

    short, long = job("short", at=100.0, estimate_s=10.0), job("long", estimate_s=15.0)
    assert first(long, short, order=Order.FIFO) == "long"
    assert first(long, replace(short, submitted_at=PATIENCE * 5 - 1)) == "short"
    assert first(long, replace(short, submitted_at=PATIENCE * 5 + 1)) == "long"
    assert first(job("unknown"), long) == "long" and first(replace(long, priority=1), short) == "long"
    assert first(replace(long, run_s=9.0, resumes=True), replace(short, submitted_at=0.0)) == "long"


def test_small_jobs_move_so_that_a_gang_finds_a_whole_node() -> None:
    jobs, attempts = holes()
    gang = job("gang", cpus(4), at=NOW, estimate_s=10.0)
    (stop,) = ask([*jobs, gang], attempts).actions
    assert (stop.id, stop.why) == ("r0", "moves: room for gang comes together")
    assert told(ask([*jobs, gang], attempts, Order.FIFO)) == []
    over = [replace(attempts[0], phase=AttemptPhase.YIELDED), *attempts[1:]]
    assert told(ask([*jobs, gang], over)) == ["close r0-1 queued", "start gang-1 on n0", "start r0-2 on n2 n1"]


@pytest.mark.parametrize(
    "fields",
    [
        {"preemptible": False},
        {"opened_at": NOW - SETTLED_S / 2},
        {"opened_at": NOW - 2 * SETTLED_S, "estimate_s": 2 * SETTLED_S + 60.0},
    ],
)
def test_what_may_not_move_or_is_about_to_end_stays(fields: dict[str, Any]) -> None:
    jobs, attempts = holes(**fields)
    assert told(ask([*jobs, job("gang", cpus(4), at=NOW, estimate_s=10.0)], attempts)) == []


def test_nobody_moves_where_it_would_not_be_enough() -> None:
    jobs, attempts = holes()
    assert told(ask([*jobs, job("gang", cpus(4, 4), at=NOW, estimate_s=10.0)], attempts)) == []  # eight, five are free
    three = [replace(one, gang=cpus(3), placement=one.placement[:1]) for one in jobs]
    seen = [replace(one, nodes=one.nodes[:1]) for one in attempts]
    assert told(ask([*three, job("gang", cpus(2), at=NOW, estimate_s=10.0)], seen)) == []  # three holes of one


def test_what_comes_together_for_a_gang_is_not_given_to_longer_jobs() -> None:
    jobs, attempts = holes()
    jobs[2] = replace(jobs[2], estimate_s=2 * SETTLED_S + 50.0)  # in 50 s there are eight on all nodes together
    gang = job("gang", cpus(4, 4), at=NOW, estimate_s=1.0)
    long, short = job("long", cpus(1), at=NOW, estimate_s=500.0), job("short", cpus(1), at=NOW, estimate_s=40.0)
    assert told(ask([*jobs, gang, long, short], attempts)) == ["start short-1 on n2"]


def test_a_large_gang_starts_in_bounded_time_while_small_jobs_keep_coming() -> None:
    sim = SimCluster([node(f"n{i}", 4) for i in range(2)], lambda id, _: Outcome(100.0))
    simulation = Simulation(sim, order=Order.SHORTEST)
    for i in range(80):
        simulation.submit(job(f"small{i}", estimate_s=100.0))
        if i == 20:
            simulation.submit(job("large", cpus(4, 4), estimate_s=50.0))
        simulation.run(until=10.0 * (i + 1), interval_s=5.0)
    (start,) = [at for at, action in simulation.history if action.id == "large" and action.nodes]
    assert start <= 210.0 + 300.0
