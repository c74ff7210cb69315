"""Records as the views that people and programs get. ``llmos.views`` says which fields clients rely on."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from llmos.control.journal import newest_metrics
from llmos.control.loop import Sight
from llmos.control.revisions import Rollout
from llmos.control.rollouts import Decided
from llmos.control.store.services import Served
from llmos.control.translate import job_gangs, unit
from llmos.core import reasons
from llmos.core.types import Gang, JobPhase, ServiceStatus
from llmos.layout import Layout
from llmos.spec import TrainFunction, TrainJob, parse

Row = dict[str, Any]


def job_view(row: Row, layout: Layout, sight: Sight) -> Row:
    """A job, with its newest metrics and, while it waits, why, its place in the queue and when it is to start."""
    phase = JobPhase(row["phase"])
    metrics = row["metrics"] if phase.final else newest_metrics(layout.job(row["id"]), row["attempts"])
    shown = ("id", "name", "phase", "attempt", "attempts", "created_at", "started_at", "ended_at", "model", "spec")
    waits = phase is JobPhase.QUEUED
    return {
        **{name: row[name] for name in shown},
        **{"reason": _reason(row, phase, sight), "step": metrics.get("step", 0), "steps": row["spec"]["steps"]},
        **{"metrics": metrics, "tenant": row.get("tenant", "default"), "priority": row.get("priority", 0)},
        **{"gang": gang_view(_gang(row, sight))},
        **{"place": sight.standing.places.get(row["id"]) if waits else None},
        **{"estimated_start": estimate_view(sight.plan.estimates.get(row["id"])) if waits else None},
    }


def job_files(row: Row, layout: Layout) -> Row:
    """``{directory, files}``: where the newest attempt writes, and what TensorBoard and a browser can show of it."""
    attempt = layout.job(row["id"]).attempt(row["attempts"])
    shown = [path for part in (attempt.tensorboard, attempt.profile) for path in sorted(part.glob("*"))]
    return {"directory": str(attempt.root), "files": [str(path.relative_to(attempt.root)) for path in shown]}


def gang_view(gang: Gang) -> Row:
    """``{text, bundles, cpus, gpus}``: what a job asks for or runs as, in words and in all."""
    everything = reasons.added(gang.bundles)
    return {
        **{"text": reasons.gang_size(gang), "bundles": len(gang.bundles)},
        **{"cpus": everything.cpus, "gpus": everything.gpus},
    }


def estimate_view(estimate: tuple[float, float] | None) -> Row | None:
    """``{p50, p90}``: a job starts then as likely before as after, and nine times of ten before; seconds since the
    epoch."""
    return {"p50": estimate[0], "p90": estimate[1]} if estimate else None


def service_view(served: Served, sight: Sight) -> Row:
    """A service: ``ready`` counts the replicas that run its present spec. ``phase`` is `ready`, `idle` (at zero until a
    request comes), `updating` (another revision answers meanwhile) or `starting`."""
    row, found = served.row, sight.services.get(served.row["name"])
    current = found is not None and found.current == row["current"]
    wanted = found.count if found and current else served.spec.replicas.min
    rollout = found.rollout if found else Rollout({}, {})
    status = sight.snapshot.services.get(unit(row["name"], row["current"]))
    ready = status.ready if status and current and not status.removing else 0
    phase = "updating" if rollout.weights else "starting"
    if current and ready >= wanted:
        phase = "ready" if wanted else "idle"
    message = _told(found, current, status, sight.error)
    if 0 < ready < wanted and not message:
        message = f"{ready} of {wanted} replicas answer"
    return {
        **{"name": row["name"], "model": row["model"], "phase": phase, "replicas": wanted, "ready": ready},
        **{"message": message, "created_at": row["created_at"], "spec": row["spec"], "follows": row["follows"]},
        **{"revision": row["current"], "previous": row["previous"], "wake_s": found.wake_s if found else None},
        "revisions": [_revision(served, number, rollout, sight) for number in sorted(served.revisions)],
    }


def _told(found: Decided | None, current: bool, status: ServiceStatus | None, error: str) -> str:
    """What there is to say about the replicas of the current revision."""
    if found is None:
        return error or "waits to be deployed"
    if not current:
        return "its spec has changed"
    trouble = status.message if status and not status.removing else ""
    if status is None and found.count and not found.rollout.why:
        return error or "waits to be deployed"
    return "; ".join(filter(None, (found.rollout.why, trouble))) or found.why


def _revision(served: Served, number: int, rollout: Rollout, sight: Sight) -> Row:
    """``{revision, model, weight, ready, replicas}``: its share of the requests, and its replicas."""
    status = sight.snapshot.services.get(unit(served.row["name"], number))
    return {
        **{"revision": number, "model": served.revisions[number].model, "weight": rollout.weights.get(number, 0.0)},
        **{"ready": status.ready if status else 0, "replicas": rollout.replicas.get(number, 0)},
    }


def _reason(row: Row, phase: JobPhase, sight: Sight) -> str:
    if phase.final:
        return str(row["reason"])
    if row["cancelled"]:
        return "cancel requested"
    if phase is JobPhase.RUNNING:
        return ""
    return sight.plan.waiting.get(row["id"]) or row["reason"] or sight.error


def _gang(row: Row, sight: Sight) -> Gang:
    """As what the job runs; the smallest that it may run as while it does not."""
    job = sight.jobs.get(row["id"])
    gangs = job.gangs if job else _asked(json.dumps(row["spec"], sort_keys=True))
    return next((gang for gang in gangs if len(gang.bundles) == len(row["placement"])), gangs[0])


@lru_cache(maxsize=16384)
def _asked(spec: str) -> tuple[Gang, ...]:
    """The gangs of a job's spec (JSON). Cached: lists of jobs are asked for again and again."""
    job = parse(json.loads(spec))
    assert isinstance(job, TrainJob | TrainFunction)
    return job_gangs(job)
