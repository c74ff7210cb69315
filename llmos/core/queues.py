"""Whose turn it is.

Among tenants: weighted dominant-resource fairness (Ghodsi et al., NSDI 2011). The next is the one that has least of
what it has most of, for its weight; what it holds now and what it held before, decayed, count alike. With a tree of
tenants this is asked at each level. Within one tenant: the higher priority first, then who was made to end, then
first come.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heapreplace

from llmos.core.resources import Resources
from llmos.core.running import expected_s
from llmos.core.tenants import Account, Ledger
from llmos.core.types import Job, Order

HALF_LIFE_S = 86400.0
"""After so long, usage counts half."""

PATIENCE = 10.0
"""Shortest first: nobody goes before a job that has waited so many seconds for each GPU-second it is to run."""
UNKNOWN_S = 86400.0
"""Shortest first: so long a job runs of which nothing is known."""

Entry = tuple[int, bool, float, str, Job]


def entry(job: Job, order: Order = Order.FIFO) -> Entry:
    """``job`` with its place in its tenant's queue before it: entries sort in the order of their turns."""
    resumes = job.resumes and order is Order.FIFO
    return -job.priority, not resumes, place(job, order, job.run_s), job.id, job


def place(job: Job, order: Order, ran_s: float) -> float:
    """Orders jobs of one priority, if ``job`` has run for ``ran_s``.

    By the time of submission; or shortest first, by the GPU-seconds that are still to be done, and then those that wait
    move up: each second of waiting counts as much as 1 / PATIENCE GPU-seconds less. So nobody waits for ever, and the
    order of those that wait stays as it is. What needs no GPU counts as if it needed one.
    """
    if order is Order.FIFO:
        return job.submitted_at
    runs_s = expected_s(job, ran_s)
    gpus = sum(bundle.gpus for bundle in job.gang.bundles)
    return job.submitted_at + PATIENCE * max(gpus, 1.0) * (runs_s if runs_s < math.inf else UNKNOWN_S)


def decayed(used: Resources, held: Resources, elapsed_s: float, half_life_s: float = HALF_LIFE_S) -> Resources:
    """The average usage after ``held`` was held for ``elapsed_s`` more: what one holds for ever is its usage."""
    keep = math.exp2(-elapsed_s / half_life_s)

    def mixed(before: float, now: float) -> float:
        return keep * before + (1 - keep) * now

    before, now = dict(used.custom), dict(held.custom)
    custom = tuple((k, mixed(before.get(k, 0.0), now.get(k, 0.0))) for k in sorted(before.keys() | now.keys()))
    memory = int(mixed(used.memory_bytes, held.memory_bytes))
    return Resources(mixed(used.cpus, held.cpus), mixed(used.gpus, held.gpus), memory, custom)


def in_turn(
    queues: Mapping[str, Iterable[Entry]], ledger: Ledger, needs: Callable[[Job], Sequence[float]]
) -> Iterator[Job]:
    """The jobs of all ``queues`` (by tenant, each in order) in the order of their turns.

    ``needs`` tells what a job needs, by kind: each turn counts as if its job had got that.
    """
    lines = {id: iter(queue) for id, queue in queues.items()}
    if len(lines) == 1:
        yield from (one[-1] for line in lines.values() for one in line)
        return
    busy = {account for id in sorted(lines) for account in ledger.account(id).path}
    root = _Turns(ledger.root, ledger, lines, busy)
    while root.head:
        job = root.pop()
        root.charge(job, needs(job))
        yield job


class _Turns:
    """The jobs of one account and of all below it, the next one first. Only ``busy`` accounts have any."""

    def __init__(
        self, account: Account, ledger: Ledger, lines: Mapping[str, Iterator[Entry]], busy: Collection[Account]
    ) -> None:
        self.id = account.id
        self._used = [a + b for a, b in zip(account.held, account.used, strict=True)]
        self._weights = ledger.weights(account)
        self.key = ledger.share(self._used, account)
        self._line = iter(()) if account.children else lines.get(account.id, iter(()))
        below = [_Turns(child, ledger, lines, busy) for child in account.children if child in busy]
        if account.children and account.parent:
            below.append(_Turns(account.own(), ledger, lines, busy))  # its own jobs, beside its children
        self._below = [(one.key, one.id, one) for one in below if one.head]
        heapify(self._below)
        self.head: Job | None = None
        self._advance()

    def pop(self) -> Job:
        """The next job, which is then no longer here."""
        assert self.head
        job = self.head
        if not self._below:
            self._advance()
        return job

    def charge(self, job: Job, amount: Sequence[float]) -> None:
        """Count ``amount`` as used by ``job``, the one popped last, and by all above it."""
        self._used = list(map(operator.add, self._used, amount))
        self.key = max(map(operator.mul, self._used, self._weights))
        if self._below:
            turns = self._below[0][2]
            turns.pop()
            turns.charge(job, amount)
            if turns.head:
                heapreplace(self._below, (turns.key, turns.id, turns))
            else:
                heappop(self._below)
            self._advance()

    def _advance(self) -> None:
        if self._below:
            self.head = self._below[0][2].head
        else:
            self.head = next((one[-1] for one in self._line), None)
