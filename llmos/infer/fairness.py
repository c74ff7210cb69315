"""The waiting queue: every tenant gets its share of the tokens, whatever it asks for.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): the tenant that has been
served least, by its weight, is next; one that comes back after a pause has saved nothing up. Two rules go before it:
a higher priority is first, and a tenant that is not served gains a level every AGEING_S, so nobody starves.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import attrgetter

from llmos.infer.entry import AGEING_S, Entry

_rank = attrgetter("rank")
_FORGET_FROM = 1024


class _Tenant:
    """``used`` tokens by weight, ``served_at`` a time, ``waiting`` entries by rank."""

    def __init__(self) -> None:
        self.used, self.served_at = 0.0, float("-inf")
        self.waiting: list[Entry] = []


class FairQueue:
    """Entries that wait, and what each tenant has had."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._waiting: dict[str, _Tenant] = {}  # those with entries
        self._floor = 0.0  # what the least served of those who waited had, last time one was taken

    def __len__(self) -> int:
        return sum(len(tenant.waiting) for tenant in self._waiting.values())

    def add(self, entry: Entry) -> None:
        tenant = self._tenant(entry.tenant)
        if not tenant.waiting:
            tenant.used = max(tenant.used, self._floor)
            self._waiting[entry.tenant] = tenant
        insort(tenant.waiting, entry, key=_rank)

    def remove(self, entry: Entry) -> None:
        """Take ``entry`` out, which waits."""
        tenant = self._waiting[entry.tenant]
        del tenant.waiting[bisect_left(tenant.waiting, entry.rank, key=_rank)]
        if not tenant.waiting:
            del self._waiting[entry.tenant]

    def first(self, now: float) -> Entry | None:
        """Who is next."""
        if not self._waiting:
            return None
        return min(self._waiting.values(), key=lambda tenant: _order(tenant, now)).waiting[0]

    def take(self, entry: Entry, now: float) -> None:
        """``entry``, the first, runs from now on."""
        self._floor = max(self._floor, min(tenant.used for tenant in self._waiting.values()))
        self._waiting[entry.tenant].served_at = now
        self.remove(entry)
        if len(self._tenants) > _FORGET_FROM + 2 * len(self._waiting):
            self._tenants = {
                name: tenant
                for name, tenant in self._tenants.items()
                if tenant.waiting or tenant.used > self._floor  # others would come back at the floor anyway
            }

    def charge(self, entry: Entry, length: int) -> None:
        """The first ``length`` tokens of ``entry`` have been computed; what was paid for before is free."""
        if length > entry.served:
            self._tenant(entry.tenant).used += (length - entry.served) / entry.weight
            entry.served = length

    def _tenant(self, name: str) -> _Tenant:
        if name not in self._tenants:
            self._tenants[name] = _Tenant()
        return self._tenants[name]


def _order(tenant: _Tenant, now: float) -> tuple[float, float, tuple[float, int]]:
    head = tenant.waiting[0]
    levels = (now - max(head.arrived, tenant.served_at)) // AGEING_S
    return -(head.priority + levels), tenant.used, head.rank
