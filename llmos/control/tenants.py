"""Tenants as the views that people and programs get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from llmos.control.loop import Sight
from llmos.control.usage import UsageBook
from llmos.core.types import Resources

Row = dict[str, Any]


def tenant_views(rows: Iterable[Row], sight: Sight, usage: UsageBook) -> list[Row]:
    """Each tenant: its limits, how many of its own jobs run and wait, what these hold, and the GPU-hours used."""
    running, waiting, held = Counter[str](), Counter[str](), dict[str, Resources]()
    for job in sight.desired.jobs:
        seen = sight.snapshot.attempts.get(job.id) if job.attempt else None
        if seen and seen.alive:
            running[job.tenant] += 1
            bundles = job.gang_on(seen.nodes or job.placement).bundles
            held[job.tenant] = sum(bundles, held.get(job.tenant, Resources()))
        else:
            waiting[job.tenant] += 1
    return [
        {
            **{name: row["spec"].get(name) for name in ("name", "parent", "share", "borrow_limit", "quota", "budget")},
            **{"running": running[row["name"]], "waiting": waiting[row["name"]]},
            **{"held": _amount(held.get(row["name"], Resources()))},
            **{"used_gpu_hours": usage.spent_gpu_s(row["name"]) / 3600},
            **{"created_at": row["created_at"], "spec": row["spec"]},
        }
        for row in rows
    ]


def _amount(held: Resources) -> Row:
    return {**asdict(held), "custom": dict(held.custom)}
