"""What a plan does to jobs, written down: a few statements for all of it, for it may hold thousands of actions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.dialects import sqlite

from llmos.control.store.database import Row, rows
from llmos.control.store.tables import attempts, jobs
from llmos.control.store.unfinished import FIELDS, some
from llmos.core.lifecycle import record
from llmos.core.types import Action, Gang, Job, JobPhase, Verb

_COLUMNS = [jobs.c.id, jobs.c.created_at, jobs.c.started_at, *(jobs.c[name] for name in FIELDS)]
_CHANGE = update(jobs).where(jobs.c.id == bindparam("_id"))
_NEW = sqlite.insert(attempts)
_BEGIN = _NEW.on_conflict_do_update(
    index_elements=["job", "number"],
    set_={name: _NEW.excluded[name] for name in ("placement", "opened_at", "failed", "why")},
)
_END = update(attempts).where(attempts.c.job == bindparam("_job"), attempts.c.number == bindparam("_number"))


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
        change = _change(found[action.id], action, now, results.get(action.id, {}))
        found[action.id] |= change
        changes[action.id] = changes.get(action.id, {}) | change
    _open(connection, [action for action in actions if action.verb is Verb.START], now)
    _close(connection, [action for action in actions if action.verb is Verb.CLOSE], now, blamed)
    alike: dict[frozenset[str], list[Row]] = {}  # a statement for all changes of the same columns
    for id, change in changes.items():
        alike.setdefault(frozenset(change), []).append({"_id": id, **change})
    for some_changes in alike.values():
        connection.execute(_CHANGE, some_changes)


def begin(connection: Connection, ids: Iterable[str]) -> list[str]:
    """Record that those of the jobs ``ids`` that were starting run, and return which were."""
    starting: list[str] = []
    for few in some(sorted(set(ids))):
        query = select(jobs.c.id).where(jobs.c.id.in_(few), jobs.c.phase == JobPhase.STARTING)
        starting += connection.execute(query).scalars()
    if starting:
        connection.execute(_CHANGE, [{"_id": id, "phase": JobPhase.RUNNING} for id in starting])
    return starting


def _by_id(connection: Connection, ids: Collection[str]) -> dict[str, Row]:
    """What may change about these jobs."""
    queries = (select(*_COLUMNS).where(jobs.c.id.in_(few)) for few in some(sorted(ids)))
    return {row["id"]: row for query in queries for row in rows(connection, query)}


def _change(row: Row, action: Action, now: float, result: Mapping[str, Any]) -> Row:
    """The columns of ``row`` that ``action`` changes."""
    before = Job(row["id"], Gang(()), row["created_at"], **{name: row[name] for name in FIELDS})
    job = record(before, action, now)
    values: Row = {name: getattr(job, name) for name in FIELDS}
    if action.verb is Verb.START:
        return values | {"phase": JobPhase.STARTING, "reason": "", "started_at": row["started_at"] or now}
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
        connection.execute(_BEGIN, begun)


def _close(connection: Connection, actions: Sequence[Action], now: float, blamed: Collection[str]) -> None:
    ended = [
        {"_job": a.id, "_number": a.attempt, "closed_at": now, "failed": a.failed, "blamed": a.id in blamed}
        | {"why": a.why}
        for a in actions
    ]
    if ended:
        connection.execute(_END, ended)
