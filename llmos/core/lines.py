"""The jobs that may start, in the order of their tenants' queues."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge

from llmos.core.queues import Entry, entry
from llmos.core.types import Job, Order


@dataclass(frozen=True, slots=True)
class Queue:
    """The jobs that may start. ``reopened`` have had their turn: their attempt is recorded and must be started again.

    ``order`` says who goes first among equals. ``lines`` are the long queues by tenant, ``more`` are others that belong
    into them, ``held`` are the ids of those in them that may not start.
    """

    reopened: Sequence[Job]
    lines: Mapping[str, list[Entry]]
    more: Sequence[Job]
    held: frozenset[str]
    order: Order = Order.FIFO

    def recorded(self, id: str) -> tuple[str, ...]:
        """Where the attempt of job ``id`` that must be started again was to be; nowhere if it is another job."""
        return next((job.placement for job in self.reopened if job.id == id), ())

    def by_tenant(self, without: Iterable[str]) -> dict[str, Iterator[Entry]]:
        """Each tenant's queue in order, without some jobs."""
        more: dict[str, list[Entry]] = {}
        for job in self.more:
            more.setdefault(job.tenant, []).append(entry(job, self.order))
        out = self.held.union(without)

        def line(tenant: str) -> Iterator[Entry]:
            whole: Iterable[Entry] = self.lines.get(tenant, ())
            if tenant in more:
                whole = merge(whole, sorted(more[tenant]))
            return (one for one in whole if one[-1].id not in out) if out else iter(whole)

        return {tenant: line(tenant) for tenant in self.lines.keys() | more.keys()}
