"""What is in store for one job: why it waits, until when, and what would let it start now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmos.control.describe import estimate_view
from llmos.control.loop import Sight
from llmos.core.explain import Outlook, explain, outlook
from llmos.core.types import Job, JobPhase

Row = dict[str, Any]

_NOT_WAITING = {
    JobPhase.STARTING: "it does not wait: it is being started",
    JobPhase.RUNNING: "it does not wait: it runs",
    JobPhase.SUCCEEDED: "it does not wait: it has succeeded",
    JobPhase.FAILED: "it does not wait: it has failed; `llmos describe` says why",
    JobPhase.CANCELLED: "it does not wait: it was cancelled",
}


def described(row: Row, sight: Sight, drained: Mapping[str, Row]) -> Row:
    """What a description adds to the view of a job: ``{nodes, after}``, and of one that waits ``{reason,
    estimated_start, turn, quarantined, drained}``; the estimate is there also where the job waits far back."""
    job = sight.jobs.get(row["id"])
    view: Row = {"nodes": list(dict.fromkeys(row["placement"])), "after": list(job.after) if job else []}
    if not (waiting := _waiting(row, sight)):
        return view
    found = outlook(waiting, sight.desired, sight.snapshot, sight.plan, sight.standing)
    view |= {"quarantined": dict(sight.plan.quarantined)}
    view |= {"drained": {node: row["why"] for node, row in drained.items()}}
    return view | {name: value for name, value in _view(found).items() if name != "reason" or value}


def explained(row: Row, sight: Sight) -> Row:
    """``{id, phase, reason, estimated_start, turn, place, ways, next_release, trials, limited, error}``: ``ways`` are
    ``{kind, text}``, changes that would let the job start now, the cheapest first; empty for a job that does not wait.
    """
    head = {"id": row["id"], "phase": row["phase"], "error": sight.error}
    job, phase = _waiting(row, sight), JobPhase(row["phase"])
    if job is None:
        fresh = sight.error or "it was submitted this moment: ask again in a second"
        why = _NOT_WAITING.get(phase, "it does not wait: it is being cancelled" if row["cancelled"] else fresh)
        nothing: Row = {"place": None, "ways": [], "next_release": None, "trials": 0, "limited": ""}
        return {**head, **_view(Outlook(why, None, None)), **nothing}
    found = explain(job, sight.desired, sight.snapshot, sight.plan, sight.standing)
    return {
        **{**head, **_view(found.outlook), "place": sight.standing.places.get(job.id)},
        **{"ways": [{"kind": way.kind, "text": way.text} for way in found.ways]},
        **{"next_release": {"at": found.release[0], "job": found.release[1]} if found.release else None},
        **{"trials": found.trials, "limited": found.limited},
    }


def _waiting(row: Row, sight: Sight) -> Job | None:
    """The job of ``row``, if it waits and the last plan knew it."""
    queued = row["phase"] == JobPhase.QUEUED and not row["cancelled"] and row["id"] in sight.standing.places
    return sight.jobs.get(row["id"]) if queued else None


def _view(found: Outlook) -> Row:
    return {"reason": found.reason, "estimated_start": estimate_view(found.estimate), "turn": found.turn}
