"""What ``llmos simulate plan`` is asked: a small cluster and what happens on it, a mapping as YAML gives it.

title: A gang waits for whole nodes
hours: 2                                    # how long it is looked at
order: fifo                                 # or shortest
colours: job                                # or tenant: what has one colour in the picture
launch: 30s                                 # from START until an attempt runs
stop: 30s                                   # what an attempt needs for its last checkpoint
nodes: [{name: a, count: 2, gpus: 4, labels: {rack: r0}}]
kinds: [{name: gpu, gpus: 4, min: 1, max: 4, launch: 2m, labels: {}}]
idle: 5m                                    # after so long, a node that nobody needs goes
tenants: [{name: vision, parent: research, share: 2, borrow_limit: 0.5, quota: 8, budget: 40}]   # GPUs, GPU-hours
jobs:
  - {name: small, count: 6, at: 0m, every: 5m, gpus: 1, runs: 20m}
  - {name: gang, at: 10m, tenant: vision, workers: 8, runs: 40m, priority: 1, after: [small]}
services: [{name: chat, gpus: 1, owned: 4, replicas: {0m: 1, 1h: 4}}]
faults: [{node: a-1, at: 30m, for: 20m, what: lost}]       # or broken: what starts there fails; or drained

The amounts are GPUs. Of everything else there is enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llmos.core.types import Gang, Job, Node, NodeKind, Order, Resources, Service, Strategy, Tenant
from llmos.errors import SpecError
from llmos.sim.section import Section, duration_s

MOST_JOBS, MOST_NODES, LONGEST_H = 1000, 256, 24.0 * 366
"""A scenario is small: every attempt is drawn. Traces are replayed by ``llmos simulate jobs``."""
LOST, BROKEN, DRAINED = "lost", "broken", "drained"


@dataclass(frozen=True, slots=True)
class Work:
    """``job`` comes at ``at_s`` and has ``run_s`` to do on its fewest workers; on twice as many it takes half of that.

    ``group`` is its name in the scenario, which equal jobs share. It commits a checkpoint every ``checkpoint_s`` of
    running. ``fails``: its first attempt ends with an error that no retry mends, once it has run for ``run_s``.
    """

    job: Job
    group: str
    at_s: float
    run_s: float
    checkpoint_s: float
    fails: bool


@dataclass(frozen=True, slots=True)
class Fault:
    """From ``at_s`` to ``until_s`` the node ``node`` is lost, breaks what starts on it, or is drained."""

    node: str
    at_s: float
    until_s: float
    what: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """``services`` come with how many replicas they want from which second on, ``kinds`` with how long a node of theirs
    takes to start. Times are seconds."""

    title: str
    until_s: float
    order: Order
    by_tenant: bool
    launch_s: float
    stop_s: float
    idle_s: float
    nodes: tuple[Node, ...]
    kinds: tuple[tuple[NodeKind, float], ...]
    tenants: tuple[Tenant, ...]
    works: tuple[Work, ...]
    services: tuple[tuple[Service, tuple[tuple[float, int], ...]], ...]
    faults: tuple[Fault, ...]


def read(value: object) -> Scenario:
    """The scenario that ``value`` describes. Raises SpecError with all that is wrong with it."""
    problems: list[str] = []
    known = ("title", "hours", "order", "colours", "launch", "stop", "idle")
    top = Section(value, "scenario", (*known, "nodes", "kinds", "tenants", "jobs", "services", "faults"), problems)
    scenario = Scenario(
        title=top.text("title", "a scenario"),
        until_s=3600 * min(top.number("hours", 0.01, 2), LONGEST_H),
        order=Order(top.one_of("order", list(Order), Order.FIFO)),
        by_tenant=top.one_of("colours", ("job", "tenant"), "job") == "tenant",
        launch_s=top.duration("launch", 1.0),
        stop_s=top.duration("stop", 1.0),
        idle_s=top.duration("idle", 300.0),
        nodes=tuple(_nodes(top)),
        kinds=tuple(_kind(section) for section in _sections(top, "kinds", _KIND)),
        tenants=tuple(_tenant(section) for section in _sections(top, "tenants", _TENANT)),
        works=tuple(_works(top)),
        services=tuple(_service(section) for section in _sections(top, "services", _SERVICE)),
        faults=tuple(_fault(section) for section in _sections(top, "faults", _FAULT)),
    )
    problems += _unsound(scenario)
    if problems:
        raise SpecError(problems)
    return scenario


_NODES = ("name", "count", "gpus", "labels")
_KIND = ("name", "gpus", "min", "max", "launch", "labels")
_TENANT = ("name", "parent", "share", "borrow_limit", "quota", "budget")
_SERVICE = ("name", "gpus", "owned", "replicas")
_FAULT = ("node", "at", "for", "what")
_JOB = (
    *(
        "name",
        "count",
        "at",
        "every",
        "tenant",
        "workers",
        "gpus",
        "runs",
        "expected",
        "at_most",
        "priority",
        "preemptible",
    ),
    *("after", "checkpoint", "grace", "grow_every", "strategy", "topology", "labels", "retries", "fails"),
)


def _sections(top: Section, name: str, known: Sequence[str]) -> Iterator[Section]:
    for number, entry in enumerate(top.list(name)):
        yield Section(entry, f"{name}[{number}]", known, top.problems)


def _count(section: Section, name: str, most: int) -> int:
    count = section.whole(name, 1, 1)
    if count > most:
        section.problems.append(f"{section.where}: {name} is {count}: expected at most {most}")
    return min(count, most)


def _nodes(top: Section) -> Iterator[Node]:
    numbers: dict[str, int] = {}
    for section in _sections(top, "nodes", _NODES):
        name, total = section.text("name", "node"), Resources(gpus=section.number("gpus", 0, 8))
        for _ in range(_count(section, "count", MOST_NODES)):
            yield Node(f"{name}-{numbers.setdefault(name, 0)}", total, labels=section.texts("labels"))
            numbers[name] += 1


def _kind(section: Section) -> tuple[NodeKind, float]:
    most = _count(section, "max", MOST_NODES)
    fewest = section.whole("min", 0, 0)
    total, labels = Resources(gpus=section.number("gpus", 0, 8)), section.texts("labels")
    return NodeKind(section.text("name"), total, labels, min(fewest, most), most), section.duration("launch", 60.0)


def _tenant(section: Section) -> Tenant:
    return Tenant(
        section.text("name"),
        parent=section.text("parent") if "parent" in section else None,
        share=section.number("share", 1e-3, 1),
        borrow_limit=section.number("borrow_limit", 0) if "borrow_limit" in section else None,
        quota=Resources(gpus=section.number("quota", 1)) if "quota" in section else None,
        budget_gpu_s=3600 * section.number("budget", 0) if "budget" in section else None,
    )


def _works(top: Section) -> Iterator[Work]:
    named: dict[str, tuple[str, ...]] = {}
    left = MOST_JOBS
    for section in _sections(top, "jobs", _JOB):
        name, count = section.text("name"), _count(section, "count", MOST_JOBS)
        ids = tuple(f"{name}-{i}" for i in range(count)) if count > 1 else (name,)
        if name in named:
            section.problems.append(f"{section.where}: name is {name[:40]}, as before: expected another")
        named[name] = ids
        left -= count
        if left < 0:
            section.problems.append(f"jobs: more than {MOST_JOBS}: `llmos simulate jobs` replays traces of many")
            return
        yield from _equal(section, ids, named)


def _equal(section: Section, ids: Sequence[str], named: dict[str, tuple[str, ...]]) -> Iterator[Work]:
    """The jobs ``ids``, which differ in when they come."""
    run_s, at_s, every_s = section.duration("runs"), section.duration("at", 0.0), section.duration("every", 0.0)
    job, checkpoint_s = _job(section, run_s, named), section.duration("checkpoint", 0.0) or math.inf
    fails = section.truth("fails", False)
    for number, id in enumerate(ids):
        starts_s = at_s + number * every_s
        yield Work(
            replace(job, id=id, submitted_at=starts_s), section.text("name"), starts_s, run_s, checkpoint_s, fails
        )


def _job(section: Section, run_s: float, named: dict[str, tuple[str, ...]]) -> Job:
    gangs = _gangs(section)
    after = [str(name) for name in section.list("after")]
    for name in after:
        if name not in named:
            section.problems.append(f"{section.where}: after names {name[:40]}: expected a job that is listed before")
    return Job(
        "",
        gangs[0],
        0.0,
        larger=gangs[1:],
        retries=section.whole("retries", 0, 3),
        grace_s=section.duration("grace", 60.0),
        grow_every_s=section.duration("grow_every", 60.0),
        tenant=section.text("tenant", "default"),
        priority=int(section.number("priority", -100, 0)),
        after=tuple(id for name in after for id in named.get(name, ())),
        estimate_s=None if section.is_none("expected") else section.duration("expected", run_s),
        estimate_high_s=section.duration("at_most") if "at_most" in section else None,
        preemptible=section.truth("preemptible", True),
    )


def _gangs(section: Section) -> tuple[Gang, ...]:
    """The sizes that a job may run as, the smallest first."""
    if section.is_mapping("workers"):
        bounds = section.below("workers", ("min", "max"))
        low, high = _count(bounds, "min", MOST_JOBS), _count(bounds, "max", MOST_JOBS)
    else:
        low = high = _count(section, "workers", MOST_JOBS)
    if low > high:
        section.problems.append(f"{section.where}.workers: min is {low}, max {high}: expected min to be at most max")
    bundle = Resources(gpus=section.number("gpus", 0, 1))
    strategy = Strategy(section.one_of("strategy", list(Strategy), Strategy.PACK))
    topology = section.text("topology") if "topology" in section else None
    labels = section.texts("labels")
    return tuple(Gang((bundle,) * n, 1, strategy, topology, labels) for n in range(low, max(low, high) + 1))


def _service(section: Section) -> tuple[Service, tuple[tuple[float, int], ...]]:
    wanted: list[tuple[float, int]] = []
    for at, count in section.items("replicas"):
        at_s = duration_s(f"{at}s" if isinstance(at, int) else str(at))
        if at_s is None or not isinstance(count, int) or not 0 <= count <= MOST_JOBS:
            told = f"replicas has {str(at)[:20]}: {str(count)[:20]}"
            section.problems.append(f"{section.where}: {told}: expected a time and a number, as in 30m: 2")
        else:
            wanted.append((at_s, count))
    gang = Gang((Resources(gpus=section.number("gpus", 0, 1)),))
    return Service(section.text("name"), "1", gang, 0, owned=section.whole("owned", 0, 0)), tuple(sorted(wanted))


def _fault(section: Section) -> Fault:
    at_s = section.duration("at", 0.0)
    until_s = at_s + section.duration("for") if "for" in section else math.inf
    return Fault(section.text("node"), at_s, until_s, section.one_of("what", (LOST, BROKEN, DRAINED), LOST))


def _unsound(scenario: Scenario) -> Iterator[str]:
    """What is wrong with parts of it that are each in order."""
    nodes = {node.id for node in scenario.nodes}
    if not nodes and not scenario.kinds:
        yield "scenario: no nodes and no kinds of node: expected a cluster, as in nodes: [{count: 2, gpus: 8}]"
    for fault in scenario.faults:
        if fault.node not in nodes:
            yield f"faults: no node {fault.node[:40]}: expected one of {', '.join(sorted(nodes)[:8])}"
    tenants = {tenant.id for tenant in scenario.tenants}
    for work in scenario.works:
        if tenants and work.job.tenant not in tenants:
            known = ", ".join(sorted(tenants)[:8])
            yield f"jobs: {work.job.id[:40]} is of tenant {work.job.tenant[:40]}: expected one of {known}"
    for tenant in scenario.tenants:
        if tenant.parent is not None and tenant.parent not in tenants:
            yield f"tenants: {tenant.id[:40]} has the parent {tenant.parent[:40]}: expected one of the tenants"
