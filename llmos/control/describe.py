"""Records as the views that people and programs get. ``llmos.views`` says which fields clients rely on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from llmos.control.journal import newest_metrics
from llmos.control.loop import Sight
from llmos.control.translate import deployment_digest, replica_gang
from llmos.core.types import Gang, Job, JobPhase, Node, Resources, Snapshot
from llmos.layout import Layout
from llmos.spec import Service, parse

Row = dict[str, Any]


def job_view(row: Row, layout: Layout, sight: Sight) -> Row:
    """A job, with its newest metrics and, while it waits, why."""
    phase = JobPhase(row["phase"])
    metrics = row["metrics"] if phase.final else newest_metrics(layout.job(row["id"]), row["attempts"])
    shown = ("id", "name", "phase", "attempt", "attempts", "created_at", "started_at", "ended_at", "model", "spec")
    return {
        **{name: row[name] for name in shown},
        **{"reason": _reason(row, phase, sight), "step": metrics.get("step", 0), "steps": row["spec"]["steps"]},
        **{"metrics": metrics},
    }


def job_files(row: Row, layout: Layout) -> Row:
    """``{directory, files}``: where the newest attempt writes, and what TensorBoard and a browser can show of it."""
    attempt = layout.job(row["id"]).attempt(row["attempts"])
    shown = [path for part in (attempt.tensorboard, attempt.profile) for path in sorted(part.glob("*"))]
    return {"directory": str(attempt.root), "files": [str(path.relative_to(attempt.root)) for path in shown]}


def service_view(row: Row, sight: Sight) -> Row:
    """A service: ``ready`` counts the replicas that run its present spec."""
    spec, status = _service(row), sight.snapshot.services.get(row["name"])
    wanted = spec.replicas.min
    if status is None:
        ready, message = 0, sight.error or "waits to be deployed"
    elif status.removing or status.digest != deployment_digest(spec):
        ready, message = 0, "its former replicas are being replaced"
    else:
        ready, message = status.ready, status.message
    if 0 < ready < wanted and not message:
        message = f"{ready} of {wanted} replicas answer"
    return {
        **{"name": row["name"], "model": row["model"], "phase": "ready" if ready >= wanted else "starting"},
        **{"replicas": wanted, "ready": ready, "message": message},
        **{"created_at": row["created_at"], "spec": row["spec"]},
    }


def node_views(snapshot: Snapshot, jobs: Iterable[Job], services: Iterable[Row]) -> list[Row]:
    """Each machine: all it has, what llmos holds there (``used``), what others do (``foreign``)."""
    used = {node.id: Resources() for node in snapshot.nodes}
    for job in jobs:
        if (seen := snapshot.attempts.get(job.id)) and seen.alive:
            _hold(used, job.gang, seen.nodes or job.placement)
    for row in services:
        if status := snapshot.services.get(row["name"]):
            gang = replica_gang(_service(row))
            _hold(used, Gang(gang.bundles * (len(status.nodes) // len(gang.bundles))), status.nodes)
    return [_node(node, used[node.id]) for node in snapshot.nodes]


def _reason(row: Row, phase: JobPhase, sight: Sight) -> str:
    if phase.final:
        return str(row["reason"])
    if row["cancelled"]:
        return "cancel requested"
    if phase is JobPhase.RUNNING:
        return ""
    return sight.plan.waiting.get(row["id"]) or row["reason"] or sight.error


def _service(row: Mapping[str, Any]) -> Service:
    spec = parse(row["spec"])
    assert isinstance(spec, Service)
    return spec


def _node(node: Node, used: Resources) -> Row:
    amounts = {"total": node.total, "used": used, "foreign": node.foreign}
    return {
        **{"id": node.id, "draining": node.draining, "labels": dict(node.labels)},
        **{name: {**asdict(amount), "custom": dict(amount.custom)} for name, amount in amounts.items()},
    }


def _hold(used: dict[str, Resources], gang: Gang, nodes: Iterable[str]) -> None:
    for bundle, node in zip(gang.bundles, nodes, strict=False):
        if node in used:
            used[node] += bundle
