"""`plan` on simulated clusters: random workloads, failures and crashes; and each invariant catches a planted bug."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from llmos.core.lifecycle import settle
from llmos.core.placement import place
from llmos.core.plan import plan
from llmos.core.room import Room
from llmos.core.types import (
    Action,
    Attempt,
    AttemptPhase,
    Desired,
    Gang,
    Job,
    Node,
    Plan,
    Resources,
    Service,
    Snapshot,
    Verb,
)
from llmos.sim.cluster import Outcome, SimCluster
from llmos.sim.invariants import violations
from llmos.sim.simulation import Planner, Simulation

PATIENCE_S = 4000.0  # longer than any generated workload needs


@dataclass(frozen=True)
class Work:
    """A job and its fate: when it comes, when (if ever) it is cancelled, and how each attempt goes."""

    gang: Gang
    at: float
    retries: int
    outcomes: tuple[Outcome, ...]
    cancel_at: float | None
    max_runtime_s: float | None


@dataclass(frozen=True)
class Workload:
    """All that is random about one simulated run."""

    nodes: tuple[Node, ...]
    works: tuple[Work, ...]
    services: tuple[tuple[float, Service | None], ...]  # from this time on, this is the service that is wanted
    crashes: tuple[tuple[int, int], ...]  # at tick i, die after applying k actions
    node_losses: tuple[tuple[float, int], ...]
    lost_launches: int


times = st.integers(0, 60).map(float)
bundles = st.builds(Resources, cpus=st.sampled_from([0.5, 1.0, 2.0]), gpus=st.sampled_from([0.0, 0.0, 1.0]))
gangs = st.builds(lambda bundle, n: Gang((bundle,) * n), bundles, st.integers(1, 4))
outcomes = st.builds(
    Outcome,
    run_s=st.integers(1, 40).map(float),
    phase=st.sampled_from([AttemptPhase.SUCCEEDED] * 3 + [AttemptPhase.FAILED, AttemptPhase.LOST]),
    deaf=st.booleans(),
)
works = st.builds(
    Work,
    gang=gangs,
    at=times,
    retries=st.integers(0, 2),
    outcomes=st.lists(outcomes, min_size=1, max_size=3).map(tuple),
    cancel_at=st.none() | times,
    max_runtime_s=st.none() | st.integers(5, 60).map(float),
)
nodes = st.builds(
    Node,
    id=st.just(""),
    total=st.builds(Resources, cpus=st.integers(1, 6).map(float), gpus=st.integers(0, 2).map(float)),
    foreign=st.sampled_from([Resources(), Resources(cpus=1)]),
    draining=st.sampled_from([False] * 5 + [True]),
)
services = st.none() | st.builds(Service, st.just("coder"), st.sampled_from("ab"), gangs, st.integers(0, 2))
workloads = st.builds(
    Workload,
    nodes=st.lists(nodes, min_size=1, max_size=4).map(
        lambda nodes: tuple(replace(node, id=f"n{i}") for i, node in enumerate(nodes))
    ),
    works=st.lists(works, min_size=1, max_size=7).map(tuple),
    services=st.lists(st.tuples(times, services), max_size=2).map(tuple),
    crashes=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=3).map(tuple),
    node_losses=st.lists(st.tuples(times, st.integers(0, 3)), max_size=1).map(tuple),
    lost_launches=st.integers(0, 2),
)


def play(workload: Workload, planner: Planner = plan) -> Simulation:
    """Run ``workload`` to its end; AssertionError at the first plan that breaks an invariant."""

    def outcome(id: str, attempt: int) -> Outcome:
        fates = workload.works[int(id[1:])].outcomes
        return fates[min(attempt, len(fates)) - 1]

    def watch(desired: Desired, snapshot: Snapshot, made: Plan) -> None:
        assert not (wrong := violations(desired, snapshot, made)), wrong
        afresh = planner(desired, snapshot, None)
        assert (afresh.actions, afresh.waiting) == (made.actions, made.waiting), "memo_irrelevant"

    cluster = SimCluster(workload.nodes, outcome)
    cluster.lost_launches = workload.lost_launches
    simulation = Simulation(cluster, plan=planner, watch=watch)
    crashes, events, tick = dict(workload.crashes), _events(workload, simulation), 0
    while events or (simulation.jobs and cluster.now < PATIENCE_S):
        while events and events[0][0] <= cluster.now:
            events.pop(0)[1]()
        all_take_effect = tick not in crashes and not cluster.lost_launches
        made = simulation.tick(crash_after=crashes.get(tick))
        if all_take_effect:
            check_idempotence(simulation, made, planner)
        tick += 1
        upcoming = [events[0][0]] if events else []
        cluster.advance(min([simulation.next_time(600.0), *upcoming]))
    return simulation


def check_idempotence(simulation: Simulation, made: Plan, planner: Planner) -> None:
    """Once the actions have taken effect there is nothing left to do, but for those whose effect makes work possible:
    a killed attempt is closed, and what a smaller service gives back is given out."""
    desired = Desired(tuple(simulation.jobs.values()), tuple(simulation.services.values()))
    again = planner(desired, simulation.cluster.observe(desired.jobs, desired.services), made.memo)
    follows = {Verb.CLOSE for action in made.actions if action.force}
    follows |= {Verb.START for action in made.actions if action.force or action.verb is Verb.DEPLOY}
    left = [action for action in again.actions if action.verb not in follows]
    assert not left, f"idempotence: {left}"


def _events(workload: Workload, simulation: Simulation) -> list[tuple[float, Callable[[], object]]]:
    """What people and machines do to the cluster from outside, in order of time."""
    events: list[tuple[float, Callable[[], object]]] = []
    for i, work in enumerate(workload.works):
        job = Job(f"j{i}", work.gang, work.at, retries=work.retries, max_runtime_s=work.max_runtime_s)
        events.append((work.at, lambda job=job: simulation.submit(job)))  # type: ignore[misc]
        if work.cancel_at is not None:
            events.append((max(work.at, work.cancel_at), lambda id=job.id: simulation.cancel(id)))  # type: ignore[misc]
    for at, service in workload.services:
        wanted = {service.id: service} if service else {}
        events.append((at, lambda wanted=wanted: setattr(simulation, "services", wanted)))  # type: ignore[misc]
    for at, i in workload.node_losses:
        if i < len(workload.nodes):
            events.append((at, lambda id=f"n{i}": simulation.cluster.fail_node(id)))  # type: ignore[misc]
    return sorted(events, key=lambda event: event[0])


def check_end(workload: Workload, simulation: Simulation) -> None:
    """No job is lost, no cancelled job lives on, what could run has run, and starts are numbered 1, 2, 3, …"""
    assert simulation.jobs.keys() | simulation.ended.keys() == {f"j{i}" for i in range(len(workload.works))}
    assert not simulation.jobs.keys() & simulation.ended.keys()
    waiting = simulation.tick().waiting
    for id, job in simulation.jobs.items():
        assert not job.cancelled, f"{id} was cancelled and never ended"
        foreign = any(node.foreign.cpus for node in workload.nodes)  # it stays for ever here, so a queue may too
        assert foreign or "cannot start" in waiting[id] or "no node" in waiting[id], waiting[id]
    for id in simulation.ended:
        numbers = [action.attempt for _, action in simulation.history if action.id == id and action.verb is Verb.START]
        assert sorted(set(numbers)) == list(range(1, len(set(numbers)) + 1))


@settings(max_examples=500, deadline=None)
@given(workloads)
def test_invariants_hold_on_random_workloads(workload: Workload) -> None:
    check_end(workload, play(workload))


def _half(gang: Gang, free: Mapping[str, Resources]) -> tuple[str, ...] | None:
    nodes = place(gang, free)
    return nodes[: max(1, len(nodes) // 2)] if nodes else None


def _reused_number(job: Job, nodes: tuple[str, ...]) -> Action:
    return Action(Verb.START, job.id, max(job.attempts, 1), nodes, why="bug")


def _stop_again(job: Job, seen: Attempt | None, now: float) -> Action | None:
    return settle(job, replace(seen, stopping_since=None) if seen else None, now)


def _stale(room: Room, gang: Gang) -> bool:
    known = room._memo.holds.get(gang)
    room._holds[gang] = place(gang, room.unserved) is not None if known is None else known
    return room._holds[gang]


PLANTED = {
    "forgets what it gave out": ("capacity_kept", "room.occupy", lambda free, gang, nodes: None),
    "half a gang": ("gangs_whole", "plan.place", _half),
    "reuses a number": ("attempts_new", "plan._start", _reused_number),
    "last in, first out": ("order_kept", "plan._turn", lambda job: (job.attempt == 0, -job.submitted_at, job.id)),
    "backfills": ("order_kept", "room.Room.could_hold", lambda room, gang: False),
    "never starts triples": (
        "work_conserved",
        "plan.place",
        lambda g, free: place(g, free) if len(g.bundles) < 3 else None,
    ),
    "gives no reason": ("reasons_given", "room.Room.why_not", lambda room, gang: ""),
    "ignores cancel": (
        "ends_carried_out",
        "plan.settle",
        lambda j, s, now: settle(replace(j, cancelled=False), s, now),
    ),
    "retries for ever": ("verdicts_right", "plan.settle", lambda j, s, now: settle(replace(j, retries=99), s, now)),
    "never updates": ("services_match", "plan._outdated", lambda service, status: "" if status else "not deployed"),
    "asks again and again": ("idempotence", "plan.settle", _stop_again),
    "trusts an old memo": ("memo_irrelevant", "room.Room.could_hold", _stale),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    invariant, target, broken = PLANTED[bug]
    monkeypatch.setattr(f"llmos.core.{target}", broken)

    def caught(workload: Workload) -> bool:
        try:
            play(workload)
        except AssertionError as error:
            return invariant in str(error)
        return False

    find(workloads, caught, settings=settings(max_examples=2000, phases=[Phase.generate], database=None))
