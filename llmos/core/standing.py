"""Where every job stands: which run and what they hold, and who waits in which order.

For people who ask, after the plan: ``plan`` keeps its own books, and pays nothing for these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from heapq import merge
from itertools import chain

from llmos.core.backlog import sorted_out
from llmos.core.dependencies import dependent, unmet
from llmos.core.free import Grid
from llmos.core.plan import Memo
from llmos.core.queues import Entry, entry, in_turn
from llmos.core.reasons import added
from llmos.core.tenants import Ledger
from llmos.core.types import Attempt, Desired, Gang, Job, Plan, Resources, Snapshot, Verb


class Standing:
    """The jobs of ``desired`` once the actions of ``plan``, which was made for ``snapshot``, are recorded.

    ``running`` are those that have an attempt, with the nodes it was given, by id.
    """

    def __init__(self, desired: Desired, snapshot: Snapshot, plan: Plan) -> None:
        self._desired = desired
        self._now = snapshot.now
        self._nodes = snapshot.nodes
        known = plan.memo.backlog if isinstance(plan.memo, Memo) else None  # saves sorting
        self._backlog = sorted_out(desired.jobs, known, desired.order)
        starts = {action.id: action.nodes for action in plan.actions if action.verb is Verb.START}
        over = {action.id for action in plan.actions if action.phase and action.phase.final}
        alive = {id: attempt for id, attempt in snapshot.attempts.items() if attempt.alive}
        self.running: dict[str, tuple[Job, tuple[str, ...]]] = {}
        self._watched: list[Job] = []  # those of them that wait
        for job in sorted(self._backlog.watched.values(), key=lambda job: (job.submitted_at, job.id)):
            attempt = alive.get(job.id)
            if attempt and attempt.number == job.attempt:
                self.running[job.id] = job, _where(job, attempt)
            elif job.id in starts:
                self.running[job.id] = job, starts[job.id]
            elif job.id not in over:
                self._watched.append(job)
        self._ending = alive.keys() - self.running.keys()
        waiting = (one[-1] for queue in self._backlog.queues.values() for one in queue) if starts else ()
        self.running |= {job.id: (job, starts[job.id]) for job in waiting if job.id in starts}

    @cached_property
    def waiting(self) -> Mapping[str, int]:
        """How many jobs of each tenant wait."""
        return {tenant: count for tenant in self.tenants if (count := sum(1 for _ in self._line(tenant)))}

    @cached_property
    def tenants(self) -> list[str]:
        """Those that were declared, and those that have jobs."""
        known = {tenant.id for tenant in self._desired.tenants} | self._backlog.queues.keys()
        return sorted(known | {job.tenant for job in self._backlog.watched.values()})

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The place of each waiting job in the queue of its tenant, from 1 on."""
        return {job.id: place for tenant in self.tenants for place, job in enumerate(self._line(tenant), start=1)}

    @cached_property
    def ledger(self) -> Ledger:
        """What the tenants hold."""
        grid = Grid(self._nodes)
        ledger = Ledger(self._desired.tenants, grid, self.tenants)
        for job, nodes in self.running.values():
            ledger.hold(job.tenant, total(grid, job.gang_on(nodes)), 0.0)
        return ledger

    def in_order(self) -> Iterator[Job]:
        """The jobs that wait in the order of their turns; at the end those that wait for something else than room."""
        again = [job for job in self._watched if job.attempt]
        held = {job.id: job for job in self._watched if self._not_ready(job)}
        out = held.keys() | {job.id for job in again}
        lines = {tenant: (one for one in self._entries(tenant) if one[-1].id not in out) for tenant in self.tenants}
        grid = Grid(self._nodes)
        turns = in_turn(lines, self.ledger, lambda job: total(grid, job.gang))
        first = (job for job in again if job.id not in held)
        return chain(
            first, turns, sorted(held.values(), key=lambda job: (job.tenant, entry(job, self._desired.order)[:-1]))
        )

    def turn(self, id: str, most: int) -> int | None:
        """How many turns, from 1 on, until it is that of job ``id``. None if that is more than ``most``."""
        for turn, job in zip(range(1, most + 1), self.in_order(), strict=False):
            if job.id == id:
                return turn
        return None

    def _line(self, tenant: str) -> Iterator[Job]:
        return (one[-1] for one in self._entries(tenant))

    def _entries(self, tenant: str) -> Iterator[Entry]:
        more = sorted(entry(job, self._desired.order) for job in self._watched if job.tenant == tenant)
        return (one for one in merge(self._backlog.queues.get(tenant, ()), more) if one[-1].id not in self.running)

    def _not_ready(self, job: Job) -> bool:
        """Whether ``job`` could not start whatever were free."""
        if self._now < job.not_before or job.cancelled or job.id in self._ending:
            return True
        return dependent(job) and job.id in self._unmet

    @cached_property
    def _unmet(self) -> Mapping[str, str]:
        return unmet(filter(dependent, self._watched), self._desired.ended)


def total(grid: Grid, gang: Gang) -> list[float]:
    """What ``gang`` needs in all, by kind of resource; nothing of kinds that no node has."""
    return grid.vector(added(gang.bundles)) or [*_plain(added(gang.bundles)), *[0.0] * len(grid.custom)]


def _plain(amount: Resources) -> list[float]:
    return [amount.cpus, amount.gpus, amount.memory_bytes]


def _where(job: Job, attempt: Attempt) -> tuple[str, ...]:
    """The nodes of its bundles: those it was given, until all are seen."""
    seen = any(len(attempt.nodes) == len(gang.bundles) for gang in job.gangs)
    return attempt.nodes if seen else job.placement
