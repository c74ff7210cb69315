"""The waiting queue: every tenant gets its share of the tokens, whatever it asks for.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): the tenant that has been
served least, by its weight, is next; one that comes back after a pause has saved nothing up. Two rules go before it:
a higher priority is first, and a tenant that is not served gains a level every AGEING_S, so nobody starves. A tenant's
users take turns by the same rules, of what is the tenant's.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import attrgetter

from llmos.infer.entry import AGEING_S, Entry

_rank = attrgetter("rank")
_FORGET_FROM = 1024


class FairQueue:
    """Entries that wait, and what each tenant has had."""

    def __init__(self) -> None:
        self._turns = _Turns("tenant")
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, entry: Entry) -> None:
        self._turns.add(entry)
        self._count += 1

    def remove(self, entry: Entry) -> None:
        """Take ``entry`` out, which waits."""
        self._turns.remove(entry)
        self._count -= 1

    def first(self, now: float) -> Entry | None:
        """Who is next."""
        return self._turns.first(now)

    def take(self, entry: Entry, now: float) -> None:
        """``entry``, the first, runs from now on."""
        self._turns.take(entry, now)
        self._count -= 1

    def charge(self, entry: Entry, length: int) -> None:
        """The first ``length`` tokens of ``entry`` have been computed; what was paid for before is free."""
        if length > entry.served:
            self._turns.charge(entry, (length - entry.served) / entry.weight)
            entry.served = length


class _ByRank:
    """The entries of one user."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entry: Entry) -> None:
        insort(self._entries, entry, key=_rank)

    def remove(self, entry: Entry) -> None:
        del self._entries[bisect_left(self._entries, entry.rank, key=_rank)]

    def first(self, _now: float) -> Entry | None:
        return self._entries[0] if self._entries else None

    def take(self, entry: Entry, _now: float) -> None:
        self.remove(entry)


class _Share:
    """``used`` tokens by weight, ``served_at`` a time, and the entries that wait."""

    def __init__(self, waiting: _Turns | _ByRank) -> None:
        self.used, self.served_at, self.waiting = 0.0, float("-inf"), waiting

    def order(self, now: float) -> tuple[float, float, tuple[float, int]]:
        """Whose turn it is: the smallest."""
        head = self.waiting.first(now)
        assert head is not None
        levels = (now - max(head.arrived, self.served_at)) // AGEING_S
        return -(head.priority + levels), self.used, head.rank


class _Turns:
    """Those that wait, of all tenants (by entries' ``tenant``) or of one tenant (by ``user``)."""

    def __init__(self, by: str) -> None:
        self._by, self._name_of = by, attrgetter(by)
        self._shares: dict[str, _Share] = {}
        self._waiting: dict[str, _Share] = {}  # those with entries
        self._floor = 0.0  # what the least served of those who waited had, last time one was taken

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, entry: Entry) -> None:
        share = self._share(entry)
        if not share.waiting:
            share.used = max(share.used, self._floor)
            self._waiting[self._name_of(entry)] = share
        share.waiting.add(entry)

    def remove(self, entry: Entry) -> None:
        share = self._waiting[self._name_of(entry)]
        share.waiting.remove(entry)
        self._drop_empty(entry, share)

    def first(self, now: float) -> Entry | None:
        if len(self._waiting) < 2:  # most often nobody, or one
            return next((share.waiting.first(now) for share in self._waiting.values()), None)
        return min(self._waiting.values(), key=lambda share: share.order(now)).waiting.first(now)

    def take(self, entry: Entry, now: float) -> None:
        self._floor = max(self._floor, min(share.used for share in self._waiting.values()))
        share = self._waiting[self._name_of(entry)]
        share.served_at = now
        share.waiting.take(entry, now)
        self._drop_empty(entry, share)
        if len(self._shares) > _FORGET_FROM + 2 * len(self._waiting):
            self._shares = {
                name: share
                for name, share in self._shares.items()
                if share.waiting or share.used > self._floor  # others would come back at the floor anyway
            }

    def charge(self, entry: Entry, tokens: float) -> None:
        share = self._share(entry)
        share.used += tokens
        if isinstance(share.waiting, _Turns):
            share.waiting.charge(entry, tokens)

    def _drop_empty(self, entry: Entry, share: _Share) -> None:
        if not share.waiting:
            del self._waiting[self._name_of(entry)]

    def _share(self, entry: Entry) -> _Share:
        name = self._name_of(entry)
        if name not in self._shares:
            self._shares[name] = _Share(_Turns("user") if self._by == "tenant" else _ByRank())
        return self._shares[name]
