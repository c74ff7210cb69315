"""Random clusters with what runs and what waits on them, and what must hold of the plan for each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from llmos.core.placement import occupy, place
from llmos.core.types import (
    Attempt,
    AttemptPhase,
    Desired,
    Failure,
    Gang,
    Job,
    JobPhase,
    Node,
    Order,
    Resources,
    Service,
    ServiceStatus,
    Snapshot,
    Strategy,
    Tenant,
)

NOW = 1000.0
KINDS, RACKS, TENANTS = ("H100", "MI300"), ("r0", "r1"), ("a", "b", "b/c")


@dataclass(frozen=True)
class World:
    """Jobs that run (their gangs lie where they fit, in this order) and jobs that wait.

    Of each of ``services``, so many replicas are there already, as far as they fit beside what runs.
    """

    nodes: tuple[Node, ...]
    running: tuple[Job, ...]
    ending: tuple[bool, ...]
    waiting: tuple[Job, ...]
    tenants: tuple[Tenant, ...]
    ended: tuple[JobPhase, ...]
    failures: tuple[Failure, ...]
    reservations: int
    order: Order
    services: tuple[tuple[Service, int], ...] = ()

    def inputs(self) -> tuple[Desired, Snapshot]:
        """What ``plan`` is asked."""
        free = {node.id: node.total - node.foreign for node in self.nodes}
        jobs, attempts = [], {}
        for i, (job, ending) in enumerate(zip(self.running, self.ending, strict=False)):
            if nodes := place(Gang(job.gang.bundles), free):
                occupy(free, job.gang, nodes)
                id = f"run{i}"
                jobs.append(replace(job, id=id, attempt=1, attempts=1, placement=nodes))
                since = NOW - 1 if ending else None
                attempts[id] = Attempt(id, 1, AttemptPhase.RUNNING, nodes=nodes, stopping_since=since)
        jobs += [replace(job, id=f"j{i}") for i, job in enumerate(self.waiting)]
        ended = {f"old{i}": phase for i, phase in enumerate(self.ended)}
        services = tuple(replace(service, id=f"s{i}") for i, (service, _) in enumerate(self.services))
        deployed = {}
        for service, (_, there) in zip(services, self.services, strict=True):
            placed: list[tuple[str, ...]] = []
            while len(placed) < there and (nodes := place(service.gang, free)):
                occupy(free, service.gang, nodes)
                placed.append(nodes)
            at = tuple(node for nodes in placed for node in nodes)
            deployed[service.id] = ServiceStatus(service.id, "1", there, len(placed), nodes=at)
        desired = Desired(
            tuple(jobs), services, self.tenants, ended, self.reservations, failures=self.failures, order=self.order
        )
        return desired, Snapshot(NOW, self.nodes, attempts, deployed)


bundles = st.sampled_from(
    [Resources(cpus=1), Resources(cpus=2), Resources(cpus=1, gpus=1), Resources(cpus=1, gpus=2), Resources(gpus=0.5)]
)
labels = st.sampled_from([(), (), (), (("accelerator", "H100"),), (("accelerator", "H100|MI300"),)])
gangs = st.builds(
    lambda bundle, n, strategy, topology, labels: Gang((bundle,) * n, 1, strategy, topology, labels),
    bundles,
    st.integers(1, 4),
    st.sampled_from([Strategy.PACK, Strategy.PACK, Strategy.SPREAD, Strategy.STRICT_PACK]),
    st.sampled_from([None, None, "rack"]),
    labels,
)
estimates = st.sampled_from([(None, None), (None, None), (50.0, None), (50.0, 100.0), (200.0, 1000.0), (1e4, 1e4)])


def _job(gang: Gang, estimate: tuple[float | None, float | None], at: int, **fields: object) -> Job:
    likely, high = estimate
    return Job("", gang, float(at), estimate_s=likely, estimate_high_s=high, grace_s=10.0, **fields)  # type: ignore[arg-type]


tenants = st.sampled_from([*["a"] * 4, "b", "b/c", "undeclared"])


def _elastic(bundle: Resources, fewest: int, more: int) -> tuple[Gang, tuple[Gang, ...]]:
    sizes = [Gang((bundle,) * n) for n in range(fewest, fewest + more + 1)]
    return sizes[0], tuple(sizes[1:])


running = st.builds(
    lambda sizes, *rest, **fields: _job(sizes[0], *rest, larger=sizes[1], **fields),
    st.builds(_elastic, bundles, st.integers(1, 4), st.sampled_from([0, 0, 0, 2])),
    estimates,
    at=st.integers(0, 900),
    opened_at=st.integers(900, 1000).map(float),
    tenant=tenants,
    priority=st.sampled_from([0, 0, 1]),
    preemptible=st.sampled_from([True, True, True, False]),
    checkpointed_at=st.sampled_from([None, 950.0, 999.0]),
    goodput=st.sampled_from([(), ((1, 1.0), (2, 1.9), (3, 2.0), (4, 1.5), (6, 1.4))]),
    resize_s=st.sampled_from([0.0, 30.0]),
)
waiting = st.builds(
    _job,
    gangs,
    estimates,
    at=st.integers(0, 1000),
    tenant=tenants,
    priority=st.sampled_from([0, 0, 0, 1, 2]),
    after=st.sampled_from([*[()] * 8, ("old0",), ("run0",), ("j0",), ("j1", "old0")]),
    resumes=st.sampled_from([False] * 5 + [True]),
    preemptible=st.sampled_from([True, True, False]),
)
nodes = st.lists(
    st.builds(
        lambda cpus, gpus, kind, rack, foreign, draining: Node(
            "",
            Resources(cpus=cpus, gpus=gpus),
            Resources(cpus=foreign),
            (("accelerator", kind), ("rack", rack)),
            draining,
        ),
        st.sampled_from([1.0, 2.0, 4.0, 8.0]),
        st.sampled_from([0.0, 2.0, 4.0]),
        st.sampled_from(KINDS),
        st.sampled_from(RACKS),
        st.sampled_from([0.0, 0.0, 0.0, 1.0]),
        st.sampled_from([False] * 7 + [True]),
    ),
    min_size=1,
    max_size=5,
).map(lambda found: tuple(replace(node, id=f"n{i}") for i, node in enumerate(found)))
limits = st.builds(
    Tenant,
    id=st.just(""),
    share=st.sampled_from([1.0, 2.0]),
    borrow_limit=st.sampled_from([None, None, 0.0, 0.5]),
    quota=st.sampled_from([None, None, Resources(gpus=2), Resources(cpus=2)]),
    budget_gpu_s=st.sampled_from([None, None, 30.0, 500.0]),
    used=st.sampled_from([Resources(), Resources(gpus=1)]),
    spent_gpu_s=st.sampled_from([0.0, 15.0, 450.0]),
)
declared = st.one_of(
    st.just(()),
    st.lists(limits, min_size=3, max_size=3).map(
        lambda found: tuple(
            replace(one, id=id, parent="b" if "/" in id else None) for one, id in zip(found, TENANTS, strict=True)
        )
    ),
)
failures = st.lists(
    st.builds(
        Failure,
        at=st.sampled_from([0.0, 900.0, 990.0]).map(lambda at: at),
        job=st.sampled_from(["x", "y", "z"]),
        nodes=st.sampled_from([("n0",), ("n1",), ("n0", "n1")]),
    ),
    max_size=6,
).map(tuple)
worlds = st.builds(
    World,
    nodes=nodes,
    running=st.lists(running, max_size=4).map(tuple),
    ending=st.lists(st.sampled_from([False] * 5 + [True]), min_size=4, max_size=4).map(tuple),
    waiting=st.lists(waiting, max_size=6).map(tuple),
    tenants=declared,
    ended=st.tuples(st.sampled_from([JobPhase.SUCCEEDED, JobPhase.SUCCEEDED, JobPhase.FAILED, JobPhase.CANCELLED])),
    failures=st.one_of(st.just(()), failures),
    reservations=st.sampled_from([1, 4, 1000]),
    order=st.sampled_from([Order.FIFO, Order.SHORTEST]),
)
services = st.tuples(
    st.builds(
        lambda bundle, replicas, owned: Service("", "1", Gang((bundle,)), replicas, owned=owned),
        bundles,
        st.integers(0, 3),
        st.sampled_from([0, 2, 4]),
    ),
    st.integers(0, 3),
)
lending = st.builds(
    lambda world, services: replace(world, services=tuple(services), failures=()),
    worlds,
    st.lists(services, min_size=1, max_size=2),
)
"""Where services own room, and some of them use less or more of it than they have."""
of_one_owner = st.builds(
    lambda world, service: replace(
        world,
        services=(service,),
        failures=(),
        tenants=(),
        ending=(False,) * 4,
        nodes=tuple(replace(node, draining=False) for node in world.nodes),
        running=tuple(replace(job, larger=()) for job in world.running),
    ),
    worlds,
    services,
)
"""Where all that is wrong with lending shows."""
of_one_tenant = worlds.map(
    lambda world: replace(
        world,
        tenants=(),
        failures=(),
        running=tuple(replace(job, tenant="a") for job in world.running),
        waiting=tuple(replace(job, tenant="a") for job in world.waiting),
    )
)
contested = of_one_tenant.map(
    lambda world: replace(
        world,
        ending=(False,) * 4,
        waiting=tuple(replace(job, after=(), gang=Gang(job.gang.bundles)) for job in world.waiting),
    )
)
"""Where nothing but room and priority decides: what is wrong with these shows most often."""
