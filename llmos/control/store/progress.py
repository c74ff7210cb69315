"""What a plan does to jobs, written down: a few statements for all of it, for it may hold thousands of actions."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.dialects import sqlite

from llmos.control.store.statements import Read, Row, Write, among
from llmos.control.store.tables import attempts, jobs
from llmos.control.store.unfinished import FIELDS, changed, fields_of, some
from llmos.core.lifecycle import record
from llmos.core.types import Action, Gang, Job, JobPhase, Verb

_OF_JOBS = Read(
    select(jobs.c.id, jobs.c.created_at, jobs.c.started_at, *(jobs.c[name] for name in FIELDS)).where(
        among(jobs.c.id, "ids")
    )
)
_NEW = sqlite.insert(attempts)
_OPENED = ("placement", "opened_at", "failed", "why")
_BEGIN = Write(
    _NEW.on_conflict_do_update(index_elements=["job", "number"], set_={name: _NEW.excluded[name] for name in _OPENED}),
    ("job", "number", *_OPENED),
)
_END = Write(
    update(attempts).where(attempts.c.job == bindparam("_job"), attempts.c.number == bindparam("_number")),
    ("closed_at", "failed", "blamed", "why"),
)


def carry_out(
    connection: Connection,
    actions: Sequence[Action],
    now: float,
    results: Mapping[str, Mapping[str, Any]],
    blamed: Collection[str] = (),
) -> None:
    """Record each START and CLOSE of jobs' attempts, in order.

    ``results`` holds, by job, columns that a CLOSE fills in besides; ``blamed`` are those whose nodes may be why they
    failed.
    """
    found = _by_id(connection, {action.id for action in actions})
    changes: dict[str, Row] = {}
    for action in actions:
        assert action.id in found, f"plan acts on {action.id}, which is not in the store"
        before, started_at = found[action.id]
        job = record(before, action, now)
        change = _change(job, started_at, action, now, results.get(action.id, {}))
        found[action.id] = job, change.get("started_at", started_at)
        changes[action.id] = changes.get(action.id, {}) | change
    _open(connection, [action for action in actions if action.verb is Verb.START], now)
    _close(connection, [action for action in actions if action.verb is Verb.CLOSE], now, blamed)
    alike: dict[frozenset[str], list[Row]] = {}  # a statement for all changes of the same columns
    for id, change in changes.items():
        alike.setdefault(frozenset(change), []).append({"_id": id, **change})
    for names, some_changes in alike.items():
        _changing(names).run(connection, some_changes)


def begin(connection: Connection, ids: Iterable[str]) -> list[str]:
    """Record that those of the jobs ``ids`` that were starting run, and return which were."""
    starting: list[str] = []
    for few in some(sorted(set(ids))):
        query = select(jobs.c.id).where(jobs.c.id.in_(few), jobs.c.phase == JobPhase.STARTING)
        starting += connection.execute(query).scalars()
    if starting:
        _changing(frozenset(["phase"])).run(connection, ({"_id": id, "phase": JobPhase.RUNNING} for id in starting))
    return starting


@lru_cache
def _changing(names: frozenset[str]) -> Write:
    """The statement that changes these columns of job ``_id``."""
    return Write(update(jobs).where(jobs.c.id == bindparam("_id")), sorted(names))


def _by_id(connection: Connection, ids: Collection[str]) -> dict[str, tuple[Job, float | None]]:
    """These jobs, of which only what may change is read, and when each first started."""
    found = {}
    for id, created_at, started_at, *values in _OF_JOBS.rows(connection, ids=json.dumps(sorted(ids))):
        found[id] = Job(id, Gang(()), created_at).but(**changed(values)), started_at
    return found


def _change(job: Job, started_at: float | None, action: Action, now: float, result: Mapping[str, Any]) -> Row:
    """The columns of ``job``, once ``action`` is recorded, that it changes."""
    values: Row = dict(zip(FIELDS, fields_of(job), strict=True))
    if action.verb is Verb.START:
        return values | {"phase": JobPhase.STARTING, "reason": "", "started_at": started_at or now}
    assert action.phase is not None
    ended_at = now if action.phase.final else None
    reason = "" if action.phase is JobPhase.SUCCEEDED else action.why
    return values | {"phase": action.phase, "reason": reason, "ended_at": ended_at, **result}


def _open(connection: Connection, actions: Sequence[Action], now: float) -> None:
    """Attempts begin; one that begins again under its old number has other nodes now."""
    begun = [
        {"job": a.id, "number": a.attempt, "placement": list(a.nodes), "opened_at": now, "failed": False, "why": a.why}
        for a in actions
    ]
    if begun:
        _BEGIN.run(connection, begun)


def _close(connection: Connection, actions: Sequence[Action], now: float, blamed: Collection[str]) -> None:
    ended = [
        {"_job": a.id, "_number": a.attempt, "closed_at": now, "failed": a.failed, "blamed": a.id in blamed}
        | {"why": a.why}
        for a in actions
    ]
    if ended:
        _END.run(connection, ended)
