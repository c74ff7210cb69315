"""Random workloads for the simulated cluster, and the play that checks every property along the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from hypothesis import strategies as st

from llmos.core.plan import plan
from llmos.core.types import AttemptPhase, Desired, Gang, Job, Node, Order, Plan, Resources, Service, Snapshot
from llmos.sim.cluster import Outcome, SimCluster
from llmos.sim.invariants import violations
from llmos.sim.properties import counted, idempotent, none_starve, repeatable, sound
from llmos.sim.simulation import Planner, Simulation

PATIENCE_S = 20_000.0  # more than any of these workloads needs


@dataclass(frozen=True)
class Work:
    """A job and its fate: when it comes, when (if ever) it is cancelled or forgotten, how its first attempts go."""

    gang: Gang
    larger: tuple[Gang, ...]
    at: float
    retries: int
    outcomes: tuple[Outcome, ...]
    cancel_at: float | None
    forget_at: float | None
    max_runtime_s: float | None
    estimate_s: float | None
    tenant: str
    priority: int
    preemptible: bool


@dataclass(frozen=True)
class Workload:
    """``crashes``: (tick, actions applied before the control module dies). Foreign work leaves at ``quiet_at``."""

    nodes: tuple[Node, ...]
    works: tuple[Work, ...]
    services: tuple[tuple[float, Service | None], ...]
    crashes: tuple[tuple[int, int], ...]
    node_losses: tuple[tuple[float, int], ...]
    drains: tuple[tuple[float, int], ...]
    lost_launches: int
    quiet_at: float
    order: Order


times = st.integers(0, 60).map(float)
rarely = partial(st.one_of, st.none(), st.none(), st.none(), st.none())
bundles = st.builds(
    Resources,
    cpus=st.sampled_from([0.5, 1.0, 2.0]),
    gpus=st.sampled_from([0.0, 0.0, 1.0]),
    custom=st.sampled_from([(), (), (), (("disk", 1.0),)]),
)
gangs = st.one_of(
    st.builds(lambda bundle, n: Gang((bundle,) * n), bundles, st.integers(1, 4)),
    st.lists(bundles, min_size=2, max_size=3).map(lambda unlike: Gang(tuple(unlike))),
)


def _elastic(bundle: Resources, together: int, sizes: set[int]) -> tuple[Gang, ...]:
    return tuple(Gang((bundle,) * (n * together), together) for n in sorted(sizes))


sized = st.one_of(
    gangs.map(lambda gang: (gang,)),
    gangs.map(lambda gang: (gang,)),
    st.builds(_elastic, bundles, st.sampled_from([1, 1, 2]), st.sets(st.integers(1, 4), min_size=1, max_size=3)),
)
outcomes = st.builds(
    Outcome,
    run_s=st.sampled_from([1.0, 3.0, 10.0, 40.0, 200.0]),
    phase=st.sampled_from(
        [*[AttemptPhase.SUCCEEDED] * 3, AttemptPhase.FAILED, AttemptPhase.LOST, AttemptPhase.YIELDED]
    ),
    retry=st.sampled_from([True, True, False]),
    deaf=st.booleans(),
)
works = st.builds(
    lambda sizes, **fields: Work(sizes[0], sizes[1:], **fields),
    sizes=sized,
    at=times,
    retries=st.integers(0, 2),
    outcomes=st.lists(outcomes, min_size=1, max_size=3).map(tuple),
    cancel_at=st.none() | times,
    forget_at=rarely(times),
    max_runtime_s=st.none() | st.integers(5, 60).map(float),
    estimate_s=st.sampled_from([None, None, 1.0, 10.0, 100.0]),
    tenant=st.sampled_from(["a", "a", "b"]),
    priority=st.sampled_from([0, 0, 0, 1]),
    preemptible=st.sampled_from([True, True, True, False]),
)
nodes = st.builds(
    Node,
    id=st.just(""),
    total=st.builds(
        Resources,
        cpus=st.integers(1, 6).map(float),
        gpus=st.integers(0, 2).map(float),
        custom=st.sampled_from([(), (("disk", 2.0),)]),
    ),
    foreign=st.sampled_from([Resources(), Resources(cpus=1)]),
    draining=st.sampled_from([False] * 5 + [True]),
)
services = st.none() | st.builds(
    lambda gang, version, replicas, owned: Service("coder", f"{version} {gang}", gang, replicas, owned=owned),
    gangs,
    st.sampled_from("ab"),
    st.integers(0, 2),
    st.sampled_from([0, 0, 2]),
)
workloads = st.builds(
    Workload,
    nodes=st.lists(nodes, min_size=1, max_size=4).map(
        lambda nodes: tuple(replace(node, id=f"n{i}") for i, node in enumerate(nodes))
    ),
    works=st.lists(works, min_size=1, max_size=7).map(tuple),
    services=st.lists(st.tuples(times, services), max_size=2).map(tuple),
    crashes=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=3).map(tuple),
    node_losses=st.lists(st.tuples(times, st.integers(0, 3)), max_size=1).map(tuple),
    drains=st.lists(st.tuples(times, st.integers(0, 3)), max_size=1).map(tuple),
    lost_launches=st.integers(0, 2),
    quiet_at=times,
    order=st.sampled_from([Order.FIFO, Order.FIFO, Order.SHORTEST]),
)


def play(workload: Workload, planner: Planner = plan) -> Simulation:
    """Run ``workload`` to its end; AssertionError at the first property that does not hold."""

    def outcome(id: str, attempt: int) -> Outcome:
        fates = workload.works[int(id[1:])].outcomes
        return fates[attempt - 1] if attempt <= len(fates) else Outcome(run_s=1.0)

    def watch(desired: Desired, snapshot: Snapshot, made: Plan) -> None:
        none(violations(desired, snapshot, made))
        none(repeatable(planner, desired, snapshot, made))

    cluster = SimCluster(workload.nodes, outcome)
    cluster.lost_launches = workload.lost_launches
    simulation = Simulation(cluster, plan=planner, watch=watch, order=workload.order)
    crashes, events, tick = dict(workload.crashes), _events(workload, simulation), 0
    quiet = False
    while events or not (quiet or cluster.now > PATIENCE_S):
        while events and events[0][0] <= cluster.now:
            events.pop(0)[1]()
        all_take_effect = tick not in crashes and not cluster.lost_launches
        made = simulation.tick(crash_after=crashes.get(tick))
        none(sound(cluster))
        if made.actions and all_take_effect:
            none(idempotent(planner, simulation, made))
        held_back = any(job.not_before > cluster.now for job in simulation.jobs.values())
        quiet = not (made.actions or held_back) and cluster.next_event() == float("inf")
        tick += 1
        upcoming = [events[0][0]] if events else []
        cluster.advance(min([simulation.next_time(600.0), *upcoming]))
    none(none_starve(planner, simulation))
    none(counted(simulation))
    return simulation


def none(wrong: Iterable[str]) -> None:
    found = list(wrong)
    assert not found, found


def _events(workload: Workload, simulation: Simulation) -> list[tuple[float, Callable[[], object]]]:
    """What people and machines do to the cluster from outside, in order of time."""
    events: list[tuple[float, Callable[[], object]]] = []
    for i, work in enumerate(workload.works):
        job = Job(f"j{i}", work.gang, work.at, retries=work.retries, max_runtime_s=work.max_runtime_s)
        job = replace(job, larger=work.larger, grace_s=5.0, grow_every_s=20.0, estimate_s=work.estimate_s)
        job = replace(job, tenant=work.tenant, priority=work.priority, preemptible=work.preemptible)
        events.append((work.at, partial(simulation.submit, job)))
        if work.cancel_at is not None:
            events.append((max(work.at, work.cancel_at), partial(simulation.cancel, job.id)))
        if work.forget_at is not None:
            events.append((max(work.at, work.forget_at), partial(simulation.jobs.pop, job.id, None)))
    for at, service in workload.services:
        events.append((at, partial(setattr, simulation, "services", {service.id: service} if service else {})))
    for at, i in workload.node_losses:
        if i < len(workload.nodes):
            events.append((at, partial(simulation.cluster.fail_node, f"n{i}")))
    for at, i in workload.drains:
        if i < len(workload.nodes):
            events.append((at, partial(_drain, simulation.cluster, f"n{i}")))
    events.append((workload.quiet_at, partial(_foreign_leaves, simulation.cluster)))
    return sorted(events, key=lambda event: event[0])


def _drain(cluster: SimCluster, node: str) -> None:
    if node in cluster.nodes:
        cluster.drain_node(node)


def _foreign_leaves(cluster: SimCluster) -> None:
    """All that llmos did not start ends."""
    cluster.nodes = {id: replace(node, foreign=Resources()) for id, node in cluster.nodes.items()}
