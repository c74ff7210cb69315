"""What tenants use: an average in which old times fade, and GPU-seconds in all.

It is kept up in memory in every tick and written down once in a while, so that a tick of a quiet cluster writes
nothing. What runs while nobody looks, because the control module restarts, is counted afterwards, from when it was
written down last; what ended meanwhile is not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace

from llmos.control.store import Store
from llmos.control.store.tenants import Usage
from llmos.core.queues import decayed
from llmos.core.types import Job, Resources, Snapshot, Tenant

SAVE_EVERY_S = 60.0
_NOTHING = Resources()


class UsageBook:
    """The usage of every tenant. One thread adds; all may read and forget."""

    def __init__(self, store: Store) -> None:
        self._tenants = store.tenants
        self._usage = store.tenants.usage()
        self._lock = threading.Lock()
        self._saved_at = 0.0
        self._written = True

    def tenants(self, now: float) -> tuple[Tenant, ...]:
        """The tenants as ``plan`` decides on them ``now``."""
        return self._tenants.desired({name: _faded(usage, now) for name, usage in self._usage.items()})

    def spent_gpu_s(self, tenant: str) -> float:
        """What its own jobs have used until the last tick."""
        return self._usage.get(tenant, Usage()).spent_gpu_s

    def forget(self, tenant: str) -> None:
        """The tenant is gone: another of its name begins with nothing."""
        with self._lock:
            self._usage = {name: usage for name, usage in self._usage.items() if name != tenant}

    def add(self, jobs: Iterable[Job], snapshot: Snapshot) -> None:
        """Count what the living attempts of ``jobs`` held until ``snapshot``; write it down if that is due."""
        held: dict[str, list[tuple[float, Resources]]] = {}
        amounts: dict[int, Resources] = {}  # of each gang, by identity: many jobs have the same
        for job in jobs:
            seen = snapshot.attempts.get(job.id) if job.attempt else None
            if seen and seen.alive and seen.number == job.attempt:
                gang = job.gang_on(seen.nodes or job.placement)
                if id(gang) not in amounts:
                    amounts[id(gang)] = sum(gang.bundles, _NOTHING)
                held.setdefault(job.tenant, []).append((job.opened_at, amounts[id(gang)]))
        if held:
            more = {name: _used(self._usage.get(name, Usage()), some, snapshot.now) for name, some in held.items()}
            with self._lock:
                self._usage = {**self._usage, **more}
            self._written = False
        if not self._written and snapshot.now - self._saved_at >= SAVE_EVERY_S:
            self.save(snapshot.now)

    def save(self, now: float) -> None:
        """Write it down, if there is anything new."""
        if not self._written:
            self._tenants.save_usage(self._usage)
            self._saved_at, self._written = now, True


def _used(usage: Usage, held: Iterable[tuple[float, Resources]], now: float) -> Usage:
    """``usage`` once amounts were ``held``, each since its attempt began or was counted last, until ``now``."""
    spans = [(max(opened_at, usage.at), amount) for opened_at, amount in held]
    gpu_s = sum(amount.gpus * max(now - since, 0.0) for since, amount in spans)
    began = _faded(usage, min(min(since for since, _ in spans), now))
    used = decayed(began.used, sum((amount for _, amount in spans), _NOTHING), max(now - began.at, 0.0))
    return Usage(now, used, usage.spent_gpu_s + gpu_s)


def _faded(usage: Usage, now: float) -> Usage:
    """``usage`` at ``now`` if nothing was held since."""
    if now <= usage.at:
        return usage
    return replace(usage, at=now, used=decayed(usage.used, _NOTHING, now - usage.at))
