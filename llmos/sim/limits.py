"""What must hold of tenants' limits, of preemption and of quarantine."""

from __future__ import annotations

from collections.abc import Iterator

from llmos.core.types import Action, Attempt, Desired, Gang, Job, Plan, Resources, Snapshot, Tenant, Verb
from llmos.sim.accounting import free, placeable, sized, take, take_missing
from llmos.sim.reading import starts


def quotas_kept(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """No START takes a tenant above its quota, or above its share and what it may borrow."""
    for action, job in starts(desired, plan):
        if job.attempt and not any(one.id == job.id and one.verb is Verb.CLOSE for one in plan.actions):
            continue  # it was let in when its attempt was recorded
        for tenant in _above(desired, job):
            held = _held(desired, snapshot, plan, tenant)
            most = _most(desired, snapshot, plan, tenant)
            gang = sum(sized(job, action.nodes).bundles, Resources())
            for name in ("cpus", "gpus", "memory_bytes"):
                limit = getattr(most, name)
                if getattr(gang, name) > 0 and getattr(held, name) > limit + 1e-5 * max(limit, 1.0):
                    yield f"tenant {tenant.id} would hold {getattr(held, name)} {name} of {limit}"


def budgets_kept(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """What runs on GPUs after the plan can still checkpoint within the budget, and nothing is started that could
    not."""
    for tenant in desired.tenants:
        if tenant.budget_gpu_s is None:
            continue
        spent = sum(one.spent_gpu_s for one in _below(desired, tenant))
        stays = [(job, nodes) for job, nodes in _living(desired, snapshot, plan) if _is_below(desired, job, tenant)]
        needs = sum(_gpus(sized(job, nodes)) * job.grace_s for job, nodes in stays)
        if stays and needs and spent + needs > tenant.budget_gpu_s + 1e-6:
            yield f"tenant {tenant.id} has spent {spent} of {tenant.budget_gpu_s} GPU-seconds and goes on with {needs}"


def preemptions_earned(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """Whole jobs end for one that waits and is of a higher priority: that is enough for it, none of them could be
    spared, and no other alone would have been enough and lost less."""
    victims = [action for action in plan.actions if action.why.startswith("preempted")]
    jobs = {job.id: job for job in desired.jobs}
    if not victims or any(seen.stopping_since is not None for seen in snapshot.attempts.values()):
        return
    if any(action.verb is Verb.STOP and action not in victims for action in plan.actions):
        return
    for victim in victims:
        job = jobs[victim.id]
        higher = [jobs[id] for id in plan.waiting if jobs[id].priority > job.priority]
        if not job.preemptible or not any(_fits(one, desired, snapshot, plan, victims) for one in higher):
            yield f"{job.id} ends for nobody: {[one.id for one in higher]} wait"
        others = [one for one in victims if one is not victim]
        if any(_fits(one, desired, snapshot, plan, others) for one in higher if _is_named(one, victim)):
            yield f"{job.id} need not have ended: {[one.id for one in others]} are enough"
    if len(victims) == 1 and len({job.tenant for job in desired.jobs}) == 1:
        yield from _cheaper(victims[0], desired, snapshot, plan)


def quarantine_kept(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """Nothing starts on a node in quarantine; only a few are, each for what it did to several jobs."""
    for action, job in starts(desired, plan):
        if bad := plan.quarantined.keys() & set(action.nodes):
            yield f"{job.id} starts on {sorted(bad)}, which kill jobs"
    if len(plan.quarantined) * 4 > len(snapshot.nodes):
        yield f"{len(plan.quarantined)} of {len(snapshot.nodes)} nodes are closed"
    for node in plan.quarantined:
        if len({failure.job for failure in desired.failures if node in failure.nodes}) < 2:
            yield f"{node} is closed for the failures of one job"


def growth_pays(desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """A job that goes on larger ends sooner by it, as far as its goodput was measured and its end is known."""
    jobs = {job.id: job for job in desired.jobs}
    for action in plan.actions:
        if not action.why.startswith("grows"):
            continue
        job, measured = jobs[action.id], dict(jobs[action.id].goodput)
        size, target = len(snapshot.attempts[job.id].nodes), int(action.why.partition(" to ")[2].partition(":")[0])
        if size not in measured or target not in measured or job.estimate_s is None:
            continue
        stays = job.opened_at + job.estimate_s - job.run_s - snapshot.now
        if 0 < stays <= job.resize_s + stays * measured[size] / measured[target]:
            yield f"{job.id} would end in {stays} s, and not sooner on {target} bundles"


def limited(desired: Desired, job: Job) -> bool:
    """Whether a limit of its tenant may keep ``job`` from starting."""
    return any(
        tenant.quota is not None or tenant.borrow_limit is not None or tenant.budget_gpu_s is not None
        for tenant in _above(desired, job)
    )


def exhausted(desired: Desired, snapshot: Snapshot, job: Job) -> bool:
    """Whether a budget above ``job`` would be used up before all that runs on it could checkpoint."""
    for tenant in _above(desired, job):
        spent = sum(one.spent_gpu_s for one in _below(desired, tenant))
        needs = 0.0
        for other in desired.jobs:
            seen = snapshot.attempts.get(other.id)
            if _is_below(desired, other, tenant) and seen and seen.alive and seen.number == other.attempt:
                needs += _gpus(sized(other, seen.nodes)) * other.grace_s
        if tenant.budget_gpu_s is not None and spent + needs > tenant.budget_gpu_s:
            return True
    return False


def _cheaper(victim: Action, desired: Desired, snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    jobs = {job.id: job for job in desired.jobs}
    for id in plan.waiting:
        if not _is_named(jobs[id], victim):
            continue
        for job, _ in _living(desired, snapshot, plan):
            seen = snapshot.attempts.get(job.id)
            if seen is None or not job.preemptible or job.priority >= jobs[id].priority or job.cancelled:
                continue
            other = Action(Verb.STOP, job.id, job.attempt)
            lost, least = (_loss(one, snapshot) for one in (jobs[victim.id], job))
            if least < lost and _fits(jobs[id], desired, snapshot, plan, [other]):
                yield f"{victim.id} ends for {id} and loses {lost}; {job.id} would lose {least}"


def _is_named(job: Job, victim: Action) -> bool:
    return f"room for {job.id} (" in victim.why


def _loss(job: Job, snapshot: Snapshot) -> float:
    seen: Attempt = snapshot.attempts[job.id]
    since = max(job.opened_at, job.checkpointed_at or 0.0)
    return max(snapshot.now - since, 0.0) * _gpus(sized(job, seen.nodes))


def _fits(job: Job, desired: Desired, snapshot: Snapshot, plan: Plan, ended: list[Action]) -> bool:
    """Whether ``job`` fits beside what the plan starts and replicas that are to come once ``ended`` have ended."""
    left = free(desired, snapshot)
    take_missing(desired.services, snapshot, left)
    for action, other in starts(desired, plan):
        take(sized(other, action.nodes), action.nodes, left)
    jobs = {one.id: one for one in desired.jobs}
    for action in ended:
        nodes = snapshot.attempts[action.id].nodes
        for bundle, node in zip(sized(jobs[action.id], nodes).bundles, nodes, strict=False):
            if node in left:
                left[node] += bundle
    return placeable(job, left, snapshot)


def _living(desired: Desired, snapshot: Snapshot, plan: Plan) -> list[tuple[Job, tuple[str, ...]]]:
    """What runs on once the plan is carried out, and is not about to end, with its nodes."""
    ends = {action.id for action in plan.actions if action.verb is Verb.STOP}
    found = []
    for job in desired.jobs:
        seen = snapshot.attempts.get(job.id)
        if seen and seen.alive and seen.number == job.attempt and seen.stopping_since is None and job.id not in ends:
            found.append((job, seen.nodes))
    return found + [(job, action.nodes) for action, job in starts(desired, plan)]


def _held(desired: Desired, snapshot: Snapshot, plan: Plan, tenant: Tenant) -> Resources:
    """What the jobs of ``tenant`` and of its descendants hold once the plan is carried out."""
    held = Resources()
    for job in desired.jobs:
        seen = snapshot.attempts.get(job.id)
        if _is_below(desired, job, tenant) and seen and seen.alive and seen.number == job.attempt:
            held += sum(sized(job, seen.nodes).bundles, Resources())
    for action, job in starts(desired, plan):
        if _is_below(desired, job, tenant):
            held += sum(sized(job, action.nodes).bundles, Resources())
    return held


def _most(desired: Desired, snapshot: Snapshot, plan: Plan, tenant: Tenant) -> Resources:
    """What ``tenant`` may hold of each kind."""
    most = [float("inf")] * 3
    total = sum((node.total for node in snapshot.nodes if not node.draining), Resources())
    if tenant.borrow_limit is not None:
        part = (1 + tenant.borrow_limit) * _part(desired, plan, tenant)
        most = [part * value for value in (total.cpus, total.gpus, total.memory_bytes)]
    if tenant.quota is not None:
        quota = (tenant.quota.cpus, tenant.quota.gpus, tenant.quota.memory_bytes)
        most = [min(a, b) if b > 0 else a for a, b in zip(most, quota, strict=True)]
    return Resources(most[0], most[1], most[2])  # type: ignore[arg-type]  # a limit may be infinite


def _part(desired: Desired, plan: Plan, tenant: Tenant) -> float:
    """The guaranteed part of the cluster. Jobs of tenants that nobody declared have a share, too."""
    known = {one.id for one in desired.tenants}
    shares = [one.share for one in desired.tenants if one.parent == tenant.parent]
    if tenant.parent is None:
        over = {action.id for action in plan.actions if action.phase and action.phase.final}
        shares += [1.0 for _ in {job.tenant for job in desired.jobs if job.id not in over} - known]
    above = next((one for one in desired.tenants if one.id == tenant.parent), None)
    return tenant.share / sum(shares) * (_part(desired, plan, above) if above else 1.0)


def _above(desired: Desired, job: Job) -> list[Tenant]:
    """The tenant of ``job`` and those above it."""
    by_id = {tenant.id: tenant for tenant in desired.tenants}
    found, next_ = [], by_id.get(job.tenant)
    while next_:
        found.append(next_)
        next_ = by_id.get(next_.parent or "")
    return found


def _below(desired: Desired, tenant: Tenant) -> list[Tenant]:
    """``tenant`` and all below it."""
    return [tenant, *(t for child in desired.tenants if child.parent == tenant.id for t in _below(desired, child))]


def _is_below(desired: Desired, job: Job, tenant: Tenant) -> bool:
    return tenant in _above(desired, job)


def _gpus(gang: Gang) -> float:
    return sum(bundle.gpus for bundle in gang.bundles)
