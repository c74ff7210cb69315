"""The cluster as people see it: its nodes, what is free on them, who waits for it and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any

from llmos.control.describe import estimate_view, gang_view
from llmos.control.loop import Sight
from llmos.control.translate import of_unit
from llmos.core.types import Gang, Job, Node, Resources
from llmos.errors import NotFoundError, UsageError

Row = dict[str, Any]

FEW = 100
"""So many of those that wait are in the overview; `llmos queue` has all."""
OPEN = "alive"


def node_views(sight: Sight, drained: Mapping[str, Row]) -> list[Row]:
    """Each machine: all it has, what llmos holds there (``used``), what others do (``foreign``), whether it takes work
    (``state``: alive, draining, quarantined) and, if not, why."""
    used = {node.id: Resources() for node in sight.snapshot.nodes}
    for id, attempt in sight.snapshot.attempts.items():
        if attempt.alive and (job := sight.jobs.get(id)):
            nodes = attempt.nodes or job.placement
            _hold(used, job.gang_on(nodes), nodes)
    for id, status in sight.snapshot.services.items():
        if known := sight.units.get(id):
            bundles = known.gang.bundles
            _hold(used, Gang(bundles * (len(status.nodes) // len(bundles))), status.nodes)
    return [_node(node, used[node.id], sight, drained) for node in sight.snapshot.nodes]


def node_work(node: str, sight: Sight) -> Row:
    """``{jobs, services}``: what llmos has on a node now, by id."""
    jobs = sorted(id for id, (_, nodes) in sight.standing.running.items() if node in nodes)
    services = {of_unit(id)[0] for id, status in sight.snapshot.services.items() if node in status.nodes}
    return {"jobs": jobs, "services": sorted(services)}


def found_node(ref: str, sight: Sight, drained: Iterable[str]) -> str:
    """The id of the one node that begins with ``ref``. Raises NotFoundError, UsageError if there are several."""
    known = sorted({node.id for node in sight.snapshot.nodes} | set(drained))
    matches = [ref] if ref in known else [id for id in known if ref and id.startswith(ref)]
    if not matches:
        there = f"the cluster has {_listed(known)}" if known else sight.error or "the cluster has no nodes"
        raise NotFoundError(f"no node `{ref[:100]}`: {there}", hint="see `llmos status`")
    if len(matches) > 1:
        raise UsageError(
            f"`{ref}` may be {_listed(matches)}: expected the beginning of one node's id",
            hint="give more of it",
            param="node",
        )
    return matches[0]


def totals(nodes: Iterable[Row], kind: str, lent: float = 0.0) -> Row:
    """What there is of a ``kind`` (cpus, gpus) on all ``nodes``: ``{total, used, lent, foreign, free, closed}``.

    ``lent`` is the part of what is used that belongs to services; ``closed`` is free on nodes that take no work.
    """
    found = {"total": 0.0, "used": 0.0, "lent": lent, "foreign": 0.0, "free": 0.0, "closed": 0.0}
    for node in nodes:
        for name in ("total", "used", "foreign"):
            found[name] += node[name][kind]
        left = node["total"][kind] - node["used"][kind] - node["foreign"][kind]
        found["free" if node["state"] == OPEN else "closed"] += max(left, 0.0)
    return found


def lent_gpus(sight: Sight) -> float:
    """GPUs that services own and jobs use."""
    return float(sum(getattr(sight.plan, "lent", {}).values()))


def queue_counts(sight: Sight) -> list[Row]:
    """Each tenant: ``{tenant, running, waiting, cpus, gpus, share, guaranteed}``.

    ``share`` is the largest part of one kind of resource that it holds, with all below it, ``guaranteed`` the part that
    is its own.
    """
    standing = sight.standing
    running: dict[str, int] = {}
    for job, _ in standing.running.values():
        running[job.tenant] = running.get(job.tenant, 0) + 1
    waiting, ledger = standing.waiting, standing.ledger
    rows = []
    for tenant in standing.tenants:
        account = ledger.account(tenant)
        parts = [held / total for held, total in zip(account.held, ledger.total, strict=True) if total > 0]
        rows.append(
            {
                **{"tenant": tenant, "running": running.get(tenant, 0), "waiting": waiting.get(tenant, 0)},
                **{"cpus": account.held[0], "gpus": account.held[1]},
                **{"share": max(parts, default=0.0), "guaranteed": ledger.guaranteed(account)},
            }
        )
    return rows


def kind_views(sight: Sight) -> list[Row]:
    """Each kind of node that the autoscaler can start: how many there are and should be; why its last launch failed
    (``trouble``), and how many seconds no other is tried for that (``retry_s``)."""
    there = Counter(node.kind for node in sight.snapshot.nodes)
    return [
        {
            **{"name": kind.name, "there": there[kind.name], "wanted": sight.plan.wanted_nodes.get(kind.name, 0)},
            **{"fewest": kind.fewest, "most": kind.most, "trouble": kind.trouble},
            "retry_s": max(0.0, kind.not_before - sight.snapshot.now),
        }
        for kind in sight.desired.kinds
    ]


def first_waiting(sight: Sight, tenants: Collection[str] | None = None) -> dict[str, str]:
    """Why each of the first that wait does, in the order of their turns: of all, or of ``tenants``."""
    first = islice((job for job in sight.standing.in_order() if tenants is None or job.tenant in tenants), FEW)
    return {job.id: why for job in first if (why := sight.plan.waiting.get(job.id))}


def queued_tenant(name: str, sight: Sight) -> list[str]:
    """The tenant, as the only one. Raises NotFoundError if it has no jobs."""
    known = sight.standing.tenants
    if name not in known:
        others = _listed(known) if known else "nobody"
        raise NotFoundError(f"no tenant `{name[:100]}` has jobs: {others} has", hint="see `llmos queue`")
    return [name]


def queue_view(sight: Sight, drained: Mapping[str, Row], tenants: Collection[str] | None, limit: int) -> Row:
    """``{total, jobs, quarantined, drained}``: who waits, in the order of their turns, the first ``limit`` of them: of
    all, or of ``tenants``."""
    standing = sight.standing
    turns = enumerate(standing.in_order(), start=1)
    jobs = (_waiting_view(job, turn, sight) for turn, job in turns if tenants is None or job.tenant in tenants)
    counts = standing.waiting
    return {
        **{"total": sum(count for name, count in counts.items() if tenants is None or name in tenants)},
        **{"jobs": list(islice(jobs, limit)), "quarantined": dict(sight.plan.quarantined)},
        **{"drained": {node: row["why"] for node, row in drained.items()}, "error": sight.error},
    }


def _waiting_view(job: Job, turn: int, sight: Sight) -> Row:
    return {
        **{"turn": turn, "id": job.id, "tenant": job.tenant, "priority": job.priority},
        **{"place": sight.standing.places.get(job.id), "gang": gang_view(job.gang)},
        **{"reason": sight.plan.waiting.get(job.id, ""), "submitted_at": job.submitted_at},
        **{"estimated_start": estimate_view(sight.plan.estimates.get(job.id))},
    }


def _node(node: Node, used: Resources, sight: Sight, drained: Mapping[str, Row]) -> Row:
    quarantined = sight.plan.quarantined.get(node.id)
    state = "draining" if node.draining else "quarantined" if quarantined else OPEN
    why = drained[node.id]["why"] if node.id in drained else quarantined or ""
    amounts = {"total": node.total, "used": used, "foreign": node.foreign}
    return {
        **{"id": node.id, "state": state, "why": why, "draining": node.draining, "drained": node.id in drained},
        **{"kind": node.kind, "labels": dict(node.labels)},
        **{name: _amount(amount) for name, amount in amounts.items()},
    }


def _amount(amount: Resources) -> Row:
    return {
        **{"cpus": amount.cpus, "gpus": amount.gpus, "memory_bytes": amount.memory_bytes},
        **{"custom": dict(amount.custom)},
    }


def _hold(used: dict[str, Resources], gang: Gang, nodes: Iterable[str]) -> None:
    for bundle, node in zip(gang.bundles, nodes, strict=False):
        if node in used:
            used[node] += bundle


def _listed(ids: Iterable[str]) -> str:
    """The first of them: there may be thousands."""
    shown = list(ids)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
