"""What must hold of what services own: others may have it, but it can always be had back, and is.

Both rules are told where one service owns replicas of one bundle: then room for them can be counted exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llmos.core.placement import place
from llmos.core.types import Attempt, Desired, Gang, Job, Plan, Resources, Service, Snapshot
from llmos.sim.accounting import free, sized, take
from llmos.sim.reading import resizes, starts

Room = dict[str, Resources]


def owners_kept(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """When a job starts that cannot be ended, the service that owns room has as much as it could have before, or all
    of it, beside those jobs."""
    owner = _owner(desired, snapshot)
    if owner is None or plan.quarantined:
        return
    kept = _replicas(owner, snapshot)[: owner.replicas]
    needs = owner.owned - len(kept)
    left = {node.id: node.total - node.foreign for node in snapshot.nodes if not node.draining}
    take(Gang(owner.gang.bundles * len(kept)), kept, left)
    possible = _count(owner, left, needs)
    for job in desired.jobs:
        seen = snapshot.attempts.get(job.id)
        if seen and seen.alive and seen.number == job.attempt and not job.preemptible:
            take(job.gang, seen.nodes, left)
    begun = [(job, action.nodes) for action, job in starts(desired, plan) if not job.preemptible]
    for job, nodes in begun:
        take(job.gang, nodes, left)
    if begun and (count := _count(owner, left, needs)) < possible:
        yield f"service {owner.id} has room for {count} of {possible} replicas beside {[job.id for job, _ in begun]}"


def owners_repaid(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """A service that has no room for replicas that it owns gets it from jobs that can be ended, as far as they have
    it: the fewest end that are enough, and no other alone would have been enough and lost less."""
    owner = _owner(desired, snapshot)
    if owner is None or not _plain(desired, snapshot, plan):
        return
    missing = min(owner.replicas, owner.owned) - len(_replicas(owner, snapshot))
    jobs = {job.id: job for job in desired.jobs}
    guests = [job for job in desired.jobs if job.preemptible and not job.cancelled and _alive(job, snapshot)]
    most = _count(owner, _without(desired, snapshot, guests), missing)
    if _count(owner, _without(desired, snapshot, []), missing) >= most:
        return
    victims = [jobs[id] for id, _ in resizes(desired, snapshot, plan)]
    got = _count(owner, _without(desired, snapshot, victims), missing)
    if got < most:
        yield f"service {owner.id} gets room for {got} of {missing} replicas that it owns: it could have it for {most}"
    for victim in victims:
        others = [job for job in victims if job is not victim]
        if not victim.preemptible or _count(owner, _without(desired, snapshot, others), missing) >= got:
            yield f"{victim.id} need not have ended, or may not: {[job.id for job in others]} are enough"
    for job in guests if len(victims) == 1 else ():
        alone = _count(owner, _without(desired, snapshot, [job]), missing)
        if alone >= got and _loss(job, snapshot) < _loss(victims[0], snapshot):
            yield f"{victims[0].id} ends for service {owner.id}; {job.id} would lose less"


def repays(desired: Desired, snapshot: Snapshot, job: Job) -> bool:
    """Whether ``job`` may end because some service lacks replicas that it owns."""
    return job.preemptible and any(
        min(service.replicas, service.owned) * len(service.gang.bundles) > len(_replicas(service, snapshot))
        for service in desired.services
    )


def _owner(desired: Desired, snapshot: Snapshot) -> Service | None:
    """The one service, if it owns room, and what is there is its own."""
    if len(desired.services) != 1 or not desired.services[0].owned:
        return None
    (owner,) = desired.services
    if len(owner.gang.bundles) != 1 or owner.gang.labels:
        return None
    ours = all(status.id == owner.id and not status.removing for status in snapshot.services.values())
    known = {(job.id, job.attempt) for job in desired.jobs}
    strays = any(seen.alive and (seen.job, seen.number) not in known for seen in snapshot.attempts.values())
    same = all(status.digest == owner.digest for status in snapshot.services.values())
    return owner if ours and same and not strays else None


def _replicas(service: Service, snapshot: Snapshot) -> tuple[str, ...]:
    """The nodes of the bundles that are there."""
    status = snapshot.services.get(service.id)
    return status.nodes if status and not status.removing and status.digest == service.digest else ()


def _plain(desired: Desired, snapshot: Snapshot, plan: Plan) -> bool:
    """Whether nothing else than the service ends jobs, and no job can go on smaller."""
    ending = any(seen.stopping_since is not None for seen in snapshot.attempts.values())
    leaving = any(node.draining for node in snapshot.nodes)
    budgets = any(tenant.budget_gpu_s is not None for tenant in desired.tenants)
    elastic = any(job.larger for job in desired.jobs)
    return not (ending or leaving or budgets or elastic or plan.quarantined or any(a.force for a in plan.actions))


def _alive(job: Job, snapshot: Snapshot) -> Attempt | None:
    seen = snapshot.attempts.get(job.id)
    return seen if seen and seen.alive and seen.number == job.attempt else None


def _loss(job: Job, snapshot: Snapshot) -> float:
    seconds = max(snapshot.now - max(job.opened_at, job.checkpointed_at or 0.0), 0.0)
    return seconds * sum(bundle.gpus for bundle in sized(job, snapshot.attempts[job.id].nodes).bundles)


def _without(desired: Desired, snapshot: Snapshot, ended: Iterable[Job]) -> Room:
    """What is free once ``ended`` have ended."""
    left = free(desired, snapshot)
    for job in ended:
        nodes = snapshot.attempts[job.id].nodes
        for bundle, node in zip(sized(job, nodes).bundles, nodes, strict=False):
            if node in left:
                left[node] += bundle
    return left


def _count(owner: Service, left: Room, most: int) -> int:
    """For how many replicas, at most so many, there is room."""
    room = dict(left)
    count = 0
    while count < most and (nodes := place(owner.gang, room)):
        take(owner.gang, nodes, room)
        count += 1
    return count
