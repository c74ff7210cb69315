"""What limits, other work and nodes could be otherwise, so that a job would start: the second part of ``explain``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

from llmos.core import reasons
from llmos.core.free import GPU, Grid, Held, Matrix, added
from llmos.core.resources import ROUNDING
from llmos.core.running import left_s
from llmos.core.shape import Shape
from llmos.core.standing import Standing, total
from llmos.core.tenants import Account, Ledger
from llmos.core.trials import Trials, World
from llmos.core.types import Job, Node, Tenant
from llmos.core.ways import Way, cost, names

SINGLE = 6
"""So many running jobs are tried whether the end of one would do, those that end soonest first."""
KINDS = 3
"""So many kinds of node are tried."""
MOST_NODES = 64
"""So many more nodes of a kind are tried at most."""
_UNIQUE = "node-id"  # a label that names one node says nothing about others of its kind


def of_others(job: Job, world: World, trials: Trials, standing: Standing, closed: Mapping[str, str]) -> Iterator[Way]:
    """Limits, nodes that take no work, work that could end, nodes that could be added. ``closed``: the quarantine."""
    yield from _limits(job, world, trials, standing.ledger)
    yield from _reopened(world, trials, closed)
    yield from _foreign(world, trials)
    yield from _services(world, trials)
    yield from _ended(job, world, trials, standing)
    yield from _alone(job, world, trials, standing)
    yield from _more_nodes(job, world, trials)


def _limits(job: Job, world: World, trials: Trials, ledger: Ledger) -> Iterator[Way]:
    """A limit of its tenant, or of one above it, is as wide as it has to be."""
    if not any(_limited(account.tenant) for account in ledger.account(job.tenant).path):
        return
    grid = Grid(world.snapshot.nodes)
    needs = total(grid, job.gang)
    for account in ledger.account(job.tenant).path:
        for tenant, text in _wider(account, needs, grid, ledger):
            found = trials.starts(_with_tenant(world, tenant))
            if found is not None:
                yield Way("limit", text + cost(found))


def _limited(tenant: Tenant) -> bool:
    return tenant.quota is not None or tenant.borrow_limit is not None or tenant.budget_gpu_s is not None


def _wider(account: Account, needs: Sequence[float], grid: Grid, ledger: Ledger) -> Iterator[tuple[Tenant, str]]:
    """The tenant of ``account`` with one limit so wide that ``needs`` fit besides what it holds, and in words."""
    tenant = account.tenant
    after = [held + more for held, more in zip(account.held, needs, strict=True)]
    if account.quota:
        short = [most > 0 and now > most + ROUNDING for most, now in zip(account.quota, after, strict=True)]
        quota = [now if less else most for less, most, now in zip(short, account.quota, after, strict=True)]
        more = grid.resources([now if less else 0.0 for less, now in zip(short, after, strict=True)])
        if any(short):
            yield replace(tenant, quota=grid.resources(quota)), f"if {tenant.id}'s quota were {reasons.amount(more)}"
    if tenant.borrow_limit is not None:
        own = [ledger.guaranteed(account) * most for most in ledger.total]
        wanted = max((now / most for now, most in zip(after, own, strict=True) if most > 0), default=0.0) - 1
        limit = math.ceil(max(wanted, 0.0) * 100) / 100
        if limit > tenant.borrow_limit:
            text = f"if {tenant.id}'s borrow limit were {limit:g} instead of {tenant.borrow_limit:g}"
            yield replace(tenant, borrow_limit=limit), text
    if tenant.budget_gpu_s is not None and needs[GPU]:
        text = f"if {tenant.id} had more than its budget of {tenant.budget_gpu_s / 3600:.4g} GPU-hours"
        yield replace(tenant, budget_gpu_s=None), text


def _with_tenant(world: World, tenant: Tenant) -> World:
    tenants = tuple(tenant if one.id == tenant.id else one for one in world.desired.tenants)
    return replace(world, desired=replace(world.desired, tenants=tenants))


def _reopened(world: World, trials: Trials, closed: Mapping[str, str]) -> Iterator[Way]:
    """Nodes that take no work do again: those in quarantine, and those that are drained."""
    if closed and (found := trials.starts(replace(world, desired=replace(world.desired, failures=())))) is not None:
        yield Way("quarantine", f"if {names(sorted(closed))} were not in quarantine{cost(found)}")
    leaving = sorted(node.id for node in world.snapshot.nodes if node.draining)
    if leaving:
        nodes = [replace(node, draining=False) for node in world.snapshot.nodes]
        if (found := trials.starts(world.with_nodes(nodes))) is not None:
            yield Way("drained", f"if {names(leaving)} took work again instead of draining{cost(found)}")


def _foreign(world: World, trials: Trials) -> Iterator[Way]:
    """What others run on the cluster has ended."""
    nothing = Node("", reasons.added(())).foreign
    taken = sorted(node.id for node in world.snapshot.nodes if node.foreign != nothing)
    if taken:
        nodes = [replace(node, foreign=nothing) for node in world.snapshot.nodes]
        if (found := trials.starts(world.with_nodes(nodes))) is not None:
            yield Way("foreign", f"if the work on {names(taken)} that llmos did not start ended{cost(found)}")


def _services(world: World, trials: Trials) -> Iterator[Way]:
    """A service is gone."""
    for service in islice(world.desired.services, SINGLE):
        others = tuple(one for one in world.desired.services if one.id != service.id)
        seen = {id: status for id, status in world.snapshot.services.items() if id != service.id}
        without = World(replace(world.desired, services=others), replace(world.snapshot, services=seen))
        if (found := trials.starts(without)) is not None:
            yield Way("service", f"if service {service.id} were removed{cost(found)}")


def _ended(job: Job, world: World, trials: Trials, standing: Standing) -> Iterator[Way]:
    """One running job has ended, or the fewest that are enough, those that are expected to end soonest."""
    grid = Grid(world.snapshot.nodes)
    runs = standing.running.items()
    held = {id: Shape(one.gang_on(nodes), grid).held(grid.locate(nodes)) for id, (one, nodes) in runs}
    free, shape = _free(world, grid, held), Shape(job.gang, grid)
    by_end = sorted(held, key=lambda id: (_ends(standing.running[id][0]), id))
    now = world.snapshot.now
    enough = (id for id in by_end if shape.fits_in(added([held[id]], free)))
    for id in islice(enough, SINGLE):
        if trials.starts(world.without({id})) == ():
            yield Way("ended", f"if {id} ended{_expected(_ends(standing.running[id][0]), now)}")
            return
    several = _fewest(by_end, lambda ids: shape.fits_in(added([held[id] for id in ids], free)))
    if len(several) > 1 and trials.starts(world.without(set(several))) == ():
        last = max(_ends(standing.running[id][0]) for id in several)
        yield Way("ended", f"if {names(several)} ended{_expected(last, now)}")


def _free(world: World, grid: Grid, held: Mapping[str, Held]) -> Matrix:
    """What jobs and services leave free."""
    free = grid.usable.copy()
    for one in held.values():
        one.take(free)
    for service in world.desired.services:
        if status := world.snapshot.services.get(service.id):
            replicas = -(-len(status.nodes) // max(len(service.gang.bundles), 1))
            gang = replace(service.gang, bundles=service.gang.bundles * replicas)
            Shape(gang, grid).held(grid.locate(status.nodes)).take(free)
    return free


def _fewest(ids: Sequence[str], enough: Callable[[Sequence[str]], bool]) -> list[str]:
    """The first of ``ids`` that are ``enough`` together, without those that are not needed; none if all are not."""
    if not enough(ids):
        return []
    low, high = 0, len(ids)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(ids[:middle]) else (middle, high)
    found = list(ids[:high])
    for id in found[-2::-1]:
        if enough(rest := [other for other in found if other != id]):
            found = rest
    return found


def _ends(job: Job) -> float:
    return job.opened_at + left_s(job)


def _expected(at: float, now: float) -> str:
    if math.isinf(at):
        return ""
    return f" (expected at {reasons.clock(at, now)} UTC)" if at > now else " (it is overdue)"


def _alone(job: Job, world: World, trials: Trials, standing: Standing) -> Iterator[Way]:
    """Nobody waits before it."""
    before = []
    for other in standing.in_order():
        if other.id == job.id:
            break
        before.append(other.id)
    if before and (found := trials.starts(world.without(set(before)))) is not None:
        who = before[0] if len(before) == 1 else f"the {len(before):,} jobs before it"
        yield Way("turn", f"if {who} did not wait for room, too{cost(found)}")


def _more_nodes(job: Job, world: World, trials: Trials) -> Iterator[Way]:
    """More nodes of a kind have joined: the fewest that would do."""
    counts = range(1, min(len(job.gang.bundles), MOST_NODES) + 1)
    for node, what, plural in islice(_kinds(world), KINDS):
        found = trials.best(counts, partial(_joined, world, node))
        if found:
            many = f"{found[0]} more nodes {plural}" if found[0] > 1 else f"one more node {what}"
            yield Way("nodes", f"if {many} joined{cost(found[1])}")


def _kinds(world: World) -> Iterator[tuple[Node, str, str]]:
    """A node of each kind that could be started, or else is there already, and how to speak of one and of several."""
    for kind in world.desired.kinds:
        yield Node("", kind.total, labels=kind.labels, kind=kind.name), f"of kind {kind.name}", f"of kind {kind.name}"
    if world.desired.kinds:
        return
    seen = set()
    for node in world.snapshot.nodes:
        labels = tuple(label for label in node.labels if _UNIQUE not in label[0])
        if (node.total, labels) not in seen:
            seen.add((node.total, labels))
            text = f"like {node.id[:12]} ({reasons.amount(node.total)})"
            yield Node("", node.total, labels=labels), text, f"{text[:-1]} each)"


def _joined(world: World, node: Node, count: int) -> World:
    return world.with_nodes([*world.snapshot.nodes, *(replace(node, id=f"~joined-{i}") for i in range(count))])
