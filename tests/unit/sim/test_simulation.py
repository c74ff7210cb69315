"""The simulated cluster does what it is told, and its properties say what is wrong with one that is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos.control.cluster import Cluster
from llmos.core.types import (
    Action,
    Attempt,
    AttemptPhase,
    Desired,
    Gang,
    Job,
    JobPhase,
    Node,
    Plan,
    Resources,
    Service,
    Snapshot,
    Tenant,
    Verb,
)
from llmos.sim.cluster import Outcome, SimCluster
from llmos.sim.properties import counted, idempotent, none_starve, repeatable, sound
from llmos.sim.simulation import Simulation

NODES = (Node("n0", Resources(cpus=2)), Node("n1", Resources(cpus=2)))
PAIR = Job("a", Gang((Resources(cpus=1),) * 2), 0.0, attempt=1, retries=1)
START = Action(Verb.START, "a", 1, ("n0", "n0"))


def cluster(outcome: Outcome = Outcome(10.0)) -> SimCluster:  # noqa: B008  # a frozen value
    return SimCluster(NODES, lambda job, attempt: outcome)


def seen(sim: SimCluster) -> Attempt | None:
    return sim.observe([PAIR], []).attempts.get("a")


def phase(sim: SimCluster) -> AttemptPhase | None:
    attempt = seen(sim)
    return attempt.phase if attempt else None


def test_it_is_a_cluster() -> None:
    sim: Cluster = cluster()
    assert sim.observe([], []) == Snapshot(0.0, NODES)


def test_an_attempt_starts_runs_and_ends() -> None:
    sim = cluster()
    assert phase(sim) is None
    sim.apply(START, PAIR)
    sim.apply(START, PAIR)
    assert phase(sim) is AttemptPhase.STARTING
    assert sim.free()["n0"] == Resources()
    assert sim.next_event() == 1.0
    sim.advance(1.0)
    assert phase(sim) is AttemptPhase.RUNNING
    assert sim.next_event() == 11.0
    sim.advance(11.0)
    assert phase(sim) is AttemptPhase.SUCCEEDED
    assert (sim.free()["n0"], sim.next_event(), sim.living()) == (Resources(cpus=2), float("inf"), [])
    sim.apply(START, PAIR)  # it has run, and does not again
    assert phase(sim) is AttemptPhase.SUCCEEDED


def test_an_attempt_that_is_asked_to_stop_yields_unless_it_is_deaf() -> None:
    for deaf, expected in ((False, AttemptPhase.YIELDED), (True, AttemptPhase.RUNNING)):
        sim = cluster(Outcome(100.0, deaf=deaf))
        sim.apply(START, PAIR)
        sim.advance(5.0)
        sim.apply(Action(Verb.STOP, "a", 1))
        sim.advance(6.0)
        sim.apply(Action(Verb.STOP, "a", 1))
        attempt = seen(sim)
        assert attempt and (attempt.phase, attempt.stopping_since) == (expected, 5.0)


def test_a_killed_attempt_and_one_whose_node_is_gone_are_lost() -> None:
    killed, orphaned, nowhere = cluster(), cluster(), cluster()
    for sim in (killed, orphaned):
        sim.apply(START, PAIR)
    killed.apply(Action(Verb.STOP, "a", 1, force=True))
    orphaned.fail_node("n0")
    nowhere.apply(replace(START, nodes=("n0", "gone")), PAIR)
    assert [phase(sim) for sim in (killed, orphaned, nowhere)] == [AttemptPhase.LOST] * 3


def test_a_lost_launch_leaves_no_trace() -> None:
    sim = cluster()
    sim.lost_launches = 1
    sim.apply(START, PAIR)
    assert phase(sim) is None
    sim.apply(START, PAIR)
    assert phase(sim) is AttemptPhase.STARTING


def test_replicas_come_up_one_by_one_where_there_is_room_and_go() -> None:
    service = Service("coder", "v1", Gang((Resources(cpus=2),)), 3)
    sim = cluster()

    def replicas() -> tuple[str, ...]:
        return sim.observe([], []).services["coder"].nodes

    sim.apply(Action(Verb.DEPLOY, "coder", replicas=3), service)
    assert replicas() == ()
    for now, expected in enumerate([("n0",), ("n0", "n1"), ("n0", "n1")], start=1):
        sim.advance(float(now))
        assert replicas() == expected
    sim.fail_node("n0")
    assert replicas() == ("n1",)
    sim.apply(Action(Verb.DEPLOY, "coder", replicas=0), service)
    assert replicas() == ()
    sim.apply(Action(Verb.REMOVE, "coder"))
    assert sim.observe([], []).services["coder"].removing
    sim.advance(4.0)
    assert sim.observe([], []).services == {}


def test_the_loop_carries_a_job_through_a_failure_to_its_end() -> None:
    fates = {1: Outcome(5.0, AttemptPhase.FAILED, error="boom"), 2: Outcome(5.0)}
    simulation = Simulation(SimCluster(NODES, lambda job, attempt: fates[attempt]))
    simulation.submit(replace(PAIR, attempt=0))
    simulation.run(until=100.0)
    assert simulation.ended == {"a": JobPhase.SUCCEEDED}
    assert [action.why for _, action in simulation.history] == [
        "attempt 1: 2 bundles of 1 CPU on n0",
        "attempt 1: boom; retry 1 of 1 in 2 s",
        "attempt 2: 2 bundles of 1 CPU on n0",
        "finished",
    ]
    assert list(counted(simulation)) == []


def nothing(desired: Desired, snapshot: Snapshot, memo: object = None) -> Plan:
    return Plan()


@pytest.fixture
def broken() -> Simulation:
    """A cluster that was given two attempts of one job and more than it has, and a planner that does nothing."""
    sim = cluster(Outcome(1e9))
    simulation = Simulation(sim, plan=nothing)
    simulation.submit(PAIR)
    for number in (2, 1):
        action = replace(START, attempt=number)
        sim.apply(action, PAIR)
        simulation.history.append((0.0, action))
    return simulation


def test_what_is_wrong_with_a_broken_cluster_is_told(broken: Simulation) -> None:
    overcommitted, doubled = sound(broken.cluster)
    assert overcommitted.startswith("sound: n0 is overcommitted: Resources(cpus=-2")
    assert doubled == "sound: two attempts of a job are alive: ['a', 'a']"
    assert list(counted(broken)) == ["counted: a had the attempts [2, 1]"]
    never, *immortal = none_starve(nothing, broken)
    assert never == "none_starve: a never ended: None"
    assert len(immortal) == 2


def test_what_is_wrong_with_a_broken_planner_is_told(broken: Simulation) -> None:
    start = Plan((START,))
    assert next(repeatable(lambda *_: start, Desired(), Snapshot(0.0), Plan())).startswith("repeatable: ")
    assert list(repeatable(lambda *_: start, Desired(), Snapshot(0.0), start)) == []
    assert next(idempotent(lambda *_: start, broken, start)).startswith("idempotent: [Action(verb=<Verb.START")
    assert list(idempotent(nothing, broken, start)) == []


def test_over_time_tenants_use_what_their_shares_say_and_never_more_than_their_budgets() -> None:
    gpu = Gang((Resources(gpus=1),))
    simulation = Simulation(SimCluster([Node("n", Resources(gpus=4))], lambda job, attempt: Outcome(30.0)))
    simulation.tenants = {
        "a": Tenant("a", share=3.0),
        "b": Tenant("b"),
        "c": Tenant("c", share=99.0, budget_gpu_s=400.0),
    }
    for i in range(80):
        for tenant in simulation.tenants:
            simulation.submit(Job(f"{tenant}{i}", gpu, 0.0, tenant=tenant, estimate_s=32.0, grace_s=5.0))
    simulation.run(until=186.0)
    before = {id: tenant.spent_gpu_s for id, tenant in simulation.tenants.items()}
    assert 370.0 <= before["c"] <= 400.0  # all that whole jobs can use of it
    simulation.run(until=806.0)
    a, b, c = (simulation.tenants[id].spent_gpu_s - before[id] for id in "abc")
    assert (c, a + b) == (0.0, 620.0 * 4)
    assert a / b == pytest.approx(3.0, rel=0.05)
