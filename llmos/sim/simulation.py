"""The control loop in miniature: observe, plan, record, apply, over a simulated cluster and a store in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from llmos.core.lifecycle import STRAY_GRACE_S, record
from llmos.core.plan import plan as core_plan
from llmos.core.queues import decayed
from llmos.core.types import (
    Action,
    Desired,
    Failure,
    Job,
    JobPhase,
    NodeKind,
    Order,
    Plan,
    Resources,
    Service,
    Snapshot,
    Tenant,
    Verb,
)
from llmos.sim.accounting import sized
from llmos.sim.cluster import SimCluster

Planner = Callable[[Desired, Snapshot, object], Plan]
Watcher = Callable[[Desired, Snapshot, Plan], None]


class Simulation:
    """Drives ``plan`` against ``cluster``.

    ``jobs`` are the unfinished jobs, ``ended`` the phase of each finished one, ``history`` every action with its
    time. ``tenants`` are kept up to date with what their jobs use. ``kinds`` are the nodes that could be started.
    ``watch`` is called with each tick's inputs and plan before anything is carried out.
    """

    def __init__(
        self,
        cluster: SimCluster,
        *,
        plan: Planner = core_plan,
        watch: Watcher | None = None,
        order: Order = Order.FIFO,
    ) -> None:
        self.cluster = cluster
        self.jobs: dict[str, Job] = {}
        self.services: dict[str, Service] = {}
        self.tenants: dict[str, Tenant] = {}
        self.kinds: tuple[NodeKind, ...] = ()
        self.failures: list[Failure] = []
        self.ended: dict[str, JobPhase] = {}
        self.history: list[tuple[float, Action]] = []
        self._plan = plan
        self._watch = watch
        self._order = order
        self._memo: object = None
        self._counted_to = 0.0
        self._held: dict[str, Resources] = {}

    def submit(self, job: Job) -> None:
        self.jobs[job.id] = replace(job, submitted_at=self.cluster.now)

    def cancel(self, id: str) -> None:
        """Ask for the end of a job; a job that has ended already stays as it is."""
        if id in self.jobs:
            self.jobs[id] = replace(self.jobs[id], cancelled=True)

    def desired(self) -> Desired:
        """What is asked for now."""
        asked = Desired(tuple(self.jobs.values()), tuple(self.services.values()), tuple(self.tenants.values()))
        return replace(asked, ended=self.ended, kinds=self.kinds, failures=tuple(self.failures), order=self._order)

    def tick(self, *, crash_after: int | None = None) -> Plan:
        """One turn of the loop. ``crash_after``: die when so many actions were applied, restart without memo."""
        self._count()
        desired = self.desired()
        snapshot = self.cluster.observe(desired.jobs, desired.services)
        plan = self._plan(desired, snapshot, self._memo)
        if self._watch:
            self._watch(desired, snapshot, plan)
        for action in plan.actions:
            self._record(action)
        for action in plan.actions[:crash_after]:
            self.cluster.apply(action, self._subject(action))
        self._memo = plan.memo if crash_after is None else None
        self._held = self._holdings()
        return plan

    def run(self, until: float, *, interval_s: float = 10.0) -> None:
        """Tick whenever something happens and at least every ``interval_s`` until the time ``until``."""
        while True:
            self.tick()
            if self.cluster.now >= until:
                return
            self.cluster.advance(min(self.next_time(interval_s), until))

    def next_time(self, interval_s: float) -> float:
        """When the next tick can find something new."""
        now = self.cluster.now
        times = [self.cluster.next_event(), now + interval_s]
        for job in self.jobs.values():
            times += [job.not_before, now + STRAY_GRACE_S, now + job.grace_s, job.opened_at + job.grow_every_s]
            if job.attempt and job.max_runtime_s is not None:
                times.append(job.opened_at + job.max_runtime_s - job.run_s)
        return min(time for time in times if time > now)

    def _subject(self, action: Action) -> Job | Service | None:
        about_service = action.verb in (Verb.DEPLOY, Verb.REMOVE)
        return self.services.get(action.id) if about_service else self.jobs.get(action.id)

    def _record(self, action: Action) -> None:
        self.history.append((self.cluster.now, action))
        if action.id not in self.jobs or action.verb in (Verb.DEPLOY, Verb.REMOVE):
            return
        if action.failed:
            self.failures.append(Failure(self.cluster.now, action.id, self.jobs[action.id].placement))
        if action.phase and action.phase.final:
            del self.jobs[action.id]
            self.ended[action.id] = action.phase
        else:
            self.jobs[action.id] = record(self.jobs[action.id], action, self.cluster.now)

    def _count(self) -> None:
        """Add what was held since the last tick to the tenants' books."""
        elapsed_s, self._counted_to = self.cluster.now - self._counted_to, self.cluster.now
        for id, held in self._held.items():
            tenant = self.tenants[id]
            spent = tenant.spent_gpu_s + held.gpus * elapsed_s
            self.tenants[id] = replace(tenant, used=decayed(tenant.used, held, elapsed_s), spent_gpu_s=spent)

    def _holdings(self) -> dict[str, Resources]:
        """What each tenant holds now."""
        held = dict.fromkeys(self.tenants, Resources())
        for attempt in self.cluster.living() if held else ():
            job = self.jobs.get(attempt.job)
            if job and job.tenant in held:
                held[job.tenant] += sum(sized(job, attempt.nodes).bundles, Resources())
        return held
