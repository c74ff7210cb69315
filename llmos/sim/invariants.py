"""What must hold of every plan, whatever the cluster and the workload.

Each function reads what a plan was made from and yields a sentence per violation. They account for themselves, with
no help from the planner's own bookkeeping, so a bug there cannot hide here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llmos.core.lifecycle import STRAY_GRACE_S
from llmos.core.types import Desired, Job, JobPhase, Order, Plan, Resources, Snapshot, Strategy, Verb
from llmos.sim.accounting import domains, free, placeable, placed, sized, take, unserved
from llmos.sim.limits import (
    budgets_kept,
    exhausted,
    growth_pays,
    limited,
    preemptions_earned,
    quarantine_kept,
    quotas_kept,
)
from llmos.sim.order import dependencies_kept, order_kept, work_conserved
from llmos.sim.owners import owners_kept, owners_repaid, repays
from llmos.sim.reading import doomed, overruled, resizes, starts, unmet, verdict

Invariant = Callable[[Desired, Snapshot, Plan], Iterator[str]]


def capacity_kept(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """No bundle is put where it does not fit, on top of all that is there."""
    left = free(desired, snapshot)
    for action, job in starts(desired, plan):
        for bundle, node in zip(sized(job, action.nodes).bundles, action.nodes, strict=False):
            if not bundle.fits_in(left.get(node, Resources())):
                yield f"{job.id}: {bundle} does not fit on {node} with {left.get(node)}"
            left[node] = left.get(node, Resources()) - bundle


def gangs_whole(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """A gang gets a node for every bundle, and only nodes that take work; one of its sizes, tensor-parallel ranks
    together."""
    usable = {node.id for node in snapshot.nodes if not node.draining}
    for action, job in starts(desired, plan):
        sizes, size = [len(gang.bundles) for gang in (job.gang, *job.larger)], len(action.nodes)
        if size not in sizes:
            yield f"{job.id}: {size} bundles placed, expected one of {sizes}"
        together = sized(job, action.nodes).together
        if any(len(set(action.nodes[i : i + together])) > 1 for i in range(0, size, together)):
            yield f"{job.id}: bundles that belong together are on different nodes: {action.nodes}"
        if not usable.issuperset(action.nodes):
            yield f"{job.id}: placed on {set(action.nodes) - usable}, which take no work"
        gang = sized(job, action.nodes)
        if not any(set(action.nodes) <= nodes for nodes in domains(gang, snapshot)):
            yield f"{job.id}: {action.nodes} have not the labels {gang.labels}, or not one {gang.topology}"
        if gang.strategy is Strategy.STRICT_PACK and len(set(action.nodes)) > 1:
            yield f"{job.id}: on several nodes, and should be on one"


def attempts_new(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """No attempt number is started that ever ran, and no job has two attempts at once."""
    closed = {action.id for action in plan.actions if action.verb is Verb.CLOSE}
    started: set[str] = set()
    for action, job in starts(desired, plan):
        seen = snapshot.attempts.get(job.id)
        reopened = job.attempt != 0 and job.id not in closed
        if action.attempt != (job.attempt if reopened else job.attempts + 1):
            yield f"{job.id}: attempt {action.attempt} started after {job.attempts}"
        if seen and (seen.alive or seen.number == action.attempt):
            yield f"{job.id}: attempt {action.attempt} started while {seen.number} is {seen.phase}"
        if job.id in started:
            yield f"{job.id}: started twice in one plan"
        started.add(job.id)


def reasons_given(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """Every job either runs, ends, starts now, or is told why it waits."""
    busy = {action.id for action in plan.actions if action.verb is Verb.START or (action.phase and action.phase.final)}
    for job in desired.jobs:
        seen = snapshot.attempts.get(job.id)
        runs = bool(seen and seen.alive and seen.number == job.attempt)
        if (job.id in busy or runs) == bool(plan.waiting.get(job.id)):
            yield f"{job.id}: waits without a reason, or has one and does not wait"


def ends_carried_out(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """What must end is asked to once, killed after the grace period, and closed once it is over; nothing else is."""
    stops = {(a.id, a.attempt): a.force for a in plan.actions if a.verb is Verb.STOP}
    closes = {action.id for action in plan.actions if action.verb is Verb.CLOSE}
    jobs = {job.id: job for job in desired.jobs}
    lost = doomed(desired, plan)
    for id in jobs.keys() | snapshot.attempts.keys():
        job, seen = jobs.get(id), snapshot.attempts.get(id)
        current = seen if job and seen and seen.number == job.attempt else None
        unwanted = job is None or id in lost or overruled(job, current, snapshot.now)
        if job and (id in closes) != bool(not current.alive if current else unwanted):
            yield f"{id}: its end is not recorded, or is before it has come"
        asked_at = seen.stopping_since if seen else None
        grace_s = job.grace_s if job and current else STRAY_GRACE_S
        due = asked_at is None or snapshot.now - asked_at >= grace_s
        ends = seen and seen.alive and (unwanted or seen is not current or asked_at is not None) and due
        expected = asked_at is not None if ends else None
        if (
            seen
            and stops.get((id, seen.number)) != expected
            and (id, seen.number) not in resizes(desired, snapshot, plan)
        ):
            yield f"{id}: stopped with force {stops.get((id, seen.number))}, expected {expected}"


def resizes_earned(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """An attempt that could go on is asked to end because its node goes, because its tenant's budget is used up,
    because somebody waits who is of a higher priority or needs only what it has above its fewest workers, because
    free room comes together for one, if that is enough, or because a service wants back what it has lent; or,
    patiently, because there is room for more and nobody waits."""
    draining = {node.id for node in snapshot.nodes if node.draining}
    jobs = {job.id: job for job in desired.jobs}
    left, everything = free(desired, snapshot), unserved(desired, snapshot)
    for node in plan.quarantined.keys() & everything.keys():
        del left[node], everything[node]
    waiting = [jobs[id] for id in plan.waiting]
    able = [job for job in waiting if placeable(job, everything, snapshot) and not unmet(desired, plan, job)]
    queue = [job for job in able if not limited(desired, job)]
    for action, job in starts(desired, plan):
        take(sized(job, action.nodes), action.nodes, left)
    ending = sum((amount for amount in left.values()), _ending(desired, snapshot))
    for id, number in resizes(desired, snapshot, plan):
        job, seen = jobs[id], snapshot.attempts[id]
        mine = dict(left)
        for bundle, node in zip(sized(job, seen.nodes).bundles, seen.nodes, strict=True):
            if node in mine:
                mine[node] += bundle
        size = len(seen.nodes)
        moves = bool(draining.intersection(seen.nodes))
        shrinks = size > len(job.gang.bundles) and bool(able or desired.services)
        roomy = any(len(gang.bundles) > size and placed(gang, mine, snapshot) for gang in job.larger)
        grows = roomy and not queue and snapshot.now - job.opened_at >= job.grow_every_s
        ranks = job.preemptible and any(other.priority > job.priority for other in able)
        broke = exhausted(desired, snapshot, job)
        gathers = desired.order is Order.SHORTEST and job.preemptible and any(_enough(one, ending) for one in able)
        ranks = ranks or gathers or repays(desired, snapshot, job)
        if seen.stopping_since is not None or not (moves or shrinks or grows or ranks or broke):
            yield f"{id}: attempt {number} on {size} nodes was asked to end for nothing"


def _ending(desired: Desired, snapshot: Snapshot) -> Resources:
    """What will be free once all has ended that was asked to."""
    soon = Resources()
    for job in desired.jobs:
        seen = snapshot.attempts.get(job.id)
        if seen and seen.alive and seen.number == job.attempt and seen.stopping_since is not None:
            soon = sum(sized(job, seen.nodes).bundles, soon)
    return soon


def _enough(job: Job, free: Resources) -> bool:
    return sum(job.gang.bundles, Resources()).fits_in(free)


def verdicts_right(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """A job ends as its attempt did: a result wins, then a cancel, then the time limit, then the retries."""
    closes = {action.id: action for action in plan.actions if action.verb is Verb.CLOSE}
    lost = {job.id for job in desired.jobs if not job.cancelled} & doomed(desired, plan)
    for job in desired.jobs:
        if close := closes.get(job.id):
            expected, failed = (JobPhase.FAILED, False) if job.id in lost else verdict(job, snapshot)
            if (close.phase, close.failed) != (expected, failed):
                yield f"{job.id}: closed as {close.phase} (failed: {close.failed}), expected {expected} ({failed})"
            if failed and expected is JobPhase.QUEUED and close.not_before <= snapshot.now:
                yield f"{job.id}: retried without a pause"


def services_match(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """Exactly the deployments that differ from what is desired are changed."""
    told = {action.id: action.replicas for action in plan.actions if action.verb is Verb.DEPLOY}
    removed = {action.id for action in plan.actions if action.verb is Verb.REMOVE}
    wanted = {service.id: service for service in desired.services}
    for id in wanted.keys() | snapshot.services.keys():
        status, service = snapshot.services.get(id), wanted.get(id)
        same = status and service and (status.digest, status.target) == (service.digest, service.replicas)
        going = bool(status and status.removing)
        ends = bool(status and not going and (service is None or (status.target and not service.replicas)))
        if (id in removed) != ends:
            yield f"service {id}: removal is wrong"
        if told.get(id) != (service.replicas if service and service.replicas and not same and not going else None):
            yield f"service {id}: deployment is wrong"


INVARIANTS: tuple[Invariant, ...] = (
    capacity_kept,
    gangs_whole,
    attempts_new,
    order_kept,
    work_conserved,
    reasons_given,
    ends_carried_out,
    resizes_earned,
    verdicts_right,
    services_match,
    dependencies_kept,
    quotas_kept,
    budgets_kept,
    preemptions_earned,
    growth_pays,
    quarantine_kept,
    owners_kept,
    owners_repaid,
)


def violations(desired: Desired, snapshot: Snapshot, plan: Plan) -> list[str]:
    """What is wrong with ``plan``, each sentence led by the name of the invariant it breaks."""
    return [f"{rule.__name__}: {text}" for rule in INVARIANTS for text in rule(desired, snapshot, plan)]
