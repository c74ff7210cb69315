"""Jobs and their attempts: accepted once, changed only together with the event that says why."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, or_, select, update
from sqlalchemy.dialects import sqlite

from llmos.control.store.database import Database, Row, first, rows
from llmos.control.store.events import append
from llmos.control.store.models import require
from llmos.control.store.tables import attempts, jobs
from llmos.control.translate import job_gangs
from llmos.core.lifecycle import record
from llmos.core.types import Action, Gang, Job, JobPhase, Verb
from llmos.errors import ConflictError, NotFoundError
from llmos.files import read_json, write_json
from llmos.layout import Layout
from llmos.spec import Job as JobSpec
from llmos.spec import Service, TrainJob, parse, to_dict

_FIELDS = ("attempt", "attempts", "failures", "cancelled", "opened_at", "not_before", "run_s", "placement")
_CHANGING = (*_FIELDS, "phase", "reason", "started_at", "ended_at", "model", "metrics")
_NEWEST = select(func.max(jobs.c.number)).where(jobs.c.name == bindparam("of"))
_OF_KEY = select(jobs).where(jobs.c.idempotency_key == bindparam("key"))
IDS_AT_ONCE = 500
"""So many are asked for in one query: SQLite bounds its parameters."""


class Jobs:
    """Every job there has been. A row has the columns of ``tables.jobs``."""

    def __init__(self, database: Database, layout: Layout) -> None:
        self._database = database
        self._layout = layout

    def submit(self, spec: JobSpec, digest: str, idempotency_key: str | None, now: float) -> Row:
        """Accept ``spec`` (``model.ref`` pinned; ``digest`` is that of what was submitted) and return its row.

        Durable on return. The job's ``spec.json`` is there, too; after a power cut :meth:`mend` sees to it. The same
        key again gives the same job. Raises ConflictError if the key stands for another spec, NotFoundError if the
        model is gone.
        """
        with self._database.write() as connection:
            if idempotency_key is not None and (known := _by_key(connection, idempotency_key)):
                return _same(known, digest, idempotency_key)
            if base := _base_model(spec):
                require(connection, base)
            number = self._next_number(connection, spec.name)
            row = _new(spec, number, now) | {"digest": digest, "idempotency_key": idempotency_key}
            write_json(self._layout.job(row["id"]).spec, row["spec"], durable=False)
            connection.execute(insert(jobs), row)
            result = f", for model {spec.output.model}" if isinstance(spec, TrainJob) else ""
            append(connection, now, "job", row["id"], "submitted", f"{spec.steps} steps{result}")
        return row

    def mend(self) -> None:
        """Write the ``spec.json`` of unfinished jobs that a power cut has left none of, or half of one."""
        query = select(jobs.c.id, jobs.c.spec).where(jobs.c.ended_at.is_(None))
        with self._database.read() as connection:
            wanted = {row["id"]: row["spec"] for row in rows(connection, query)}
        for id, spec in wanted.items():
            if not _written(self._layout.job(id).spec, spec):
                write_json(self._layout.job(id).spec, spec)

    def find(self, ref: str) -> Row:
        """The job with this id, else the newest of this name. Raises NotFoundError."""
        query = (
            select(jobs)
            .where(or_(jobs.c.id == ref, jobs.c.name == ref))
            .order_by(jobs.c.id != ref, jobs.c.number.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            row = first(connection, query)
        if row is None:
            raise NotFoundError(f"no job `{ref[:200]}`: expected a job's id or name", hint="see `llmos jobs`")
        return row

    def makers(self, ids: Sequence[str]) -> set[str]:
        """Those of the jobs ``ids`` that make a model."""
        found, output = set[str](), func.json_extract(jobs.c.spec, "$.output")
        for start in range(0, len(ids), IDS_AT_ONCE):
            some = jobs.c.id.in_(ids[start : start + IDS_AT_ONCE])
            with self._database.read() as connection:
                found.update(connection.execute(select(jobs.c.id).where(some, output.is_not(None))).scalars())
        return found

    def all(self, phase: str | None = None) -> list[Row]:
        """Every job, or those in ``phase``, newest first."""
        query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.number.desc())
        query = query if phase is None else query.where(jobs.c.phase == phase)
        with self._database.read() as connection:
            return rows(connection, query)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each phase."""
        query = select(jobs.c.phase, func.count().label("count")).group_by(jobs.c.phase)
        with self._database.read() as connection:
            found = {row["phase"]: row["count"] for row in rows(connection, query)}
        return {phase.value: found.get(phase.value, 0) for phase in JobPhase}

    def unfinished(self) -> tuple[Job, ...]:
        """The jobs that ``plan`` decides on, first come first."""
        query = select(jobs).where(jobs.c.ended_at.is_(None)).order_by(jobs.c.created_at, jobs.c.id)
        with self._database.read() as connection:
            return tuple(_job(row) for row in rows(connection, query))

    def cancel(self, ref: str, now: float) -> Row:
        """Ask for the end of a job and return its row. One that has ended stays as it is."""
        id = self.find(ref)["id"]
        with self._database.write() as connection:
            wanted = (jobs.c.id == id) & jobs.c.ended_at.is_(None) & jobs.c.cancelled.is_(False)
            if connection.execute(update(jobs).where(wanted).values(cancelled=True)).rowcount:
                append(connection, now, "job", id, "cancel_requested")
        return self.find(id)

    def _next_number(self, connection: Connection, name: str) -> int:
        """The next number of ``name`` whose directory is not taken: the database may be younger than the files."""
        newest = connection.execute(_NEWEST, {"of": name}).scalar()
        number = (newest or 0) + 1
        while _taken(self._layout, f"{name}-{number}"):
            number += 1
        return number


def carry_out(
    connection: Connection, actions: Sequence[Action], now: float, results: Mapping[str, Mapping[str, Any]]
) -> None:
    """Record each START and CLOSE of jobs' attempts, in order. ``results`` holds, by job, columns that a CLOSE fills in
    besides. A few statements for all of them: a plan may hold thousands."""
    found = _by_id(connection, {action.id for action in actions})
    for action in actions:
        assert action.id in found, f"plan acts on {action.id}, which is not in the store"
        found[action.id] |= _after(found[action.id], action, now, results.get(action.id, {}))
    opens = [action for action in actions if action.verb is Verb.START]
    closes = [action for action in actions if action.verb is Verb.CLOSE and action.attempt]
    _open(connection, opens, now)
    _close(connection, closes, now)
    if found:
        changed = [{"_id": id, **{name: row[name] for name in _CHANGING}} for id, row in found.items()]
        connection.execute(update(jobs).where(jobs.c.id == bindparam("_id")), changed)


def begin(connection: Connection, ids: Iterable[str]) -> list[str]:
    """Record that those of ``ids`` that were starting run. Returns which were."""
    found = _by_id(connection, set(ids))
    starting = [id for id, row in found.items() if row["phase"] == JobPhase.STARTING]
    if starting:
        runs = update(jobs).where(jobs.c.id == bindparam("_id")).values(phase=JobPhase.RUNNING)
        connection.execute(runs, [{"_id": id} for id in starting])
    return sorted(starting)


def _by_id(connection: Connection, ids: Collection[str]) -> dict[str, Row]:
    """The rows of these jobs."""
    wanted, found = sorted(ids), dict[str, Row]()
    for start in range(0, len(wanted), IDS_AT_ONCE):
        query = select(jobs).where(jobs.c.id.in_(wanted[start : start + IDS_AT_ONCE]))
        found |= {row["id"]: row for row in rows(connection, query)}
    return found


def _after(row: Row, action: Action, now: float, result: Mapping[str, Any]) -> Row:
    """The columns of ``row`` that ``action`` changes."""
    job = record(_job(row), action, now)
    fields: Row = {name: getattr(job, name) for name in _FIELDS}
    if action.verb is Verb.START:
        return fields | {"phase": JobPhase.STARTING, "reason": "", "started_at": row["started_at"] or now}
    assert action.phase is not None
    ended_at = now if action.phase.final else None
    reason = "" if action.phase is JobPhase.SUCCEEDED else action.why
    return fields | {"phase": action.phase, "reason": reason, "ended_at": ended_at, **result}


def _open(connection: Connection, actions: Sequence[Action], now: float) -> None:
    """Write down attempts that begin; those that begin again under their old number have other nodes now."""
    if actions:
        begun = [
            {"job": a.id, "number": a.attempt, "placement": list(a.nodes), "opened_at": now, "failed": False}
            | {"why": a.why}
            for a in actions
        ]
        new = sqlite.insert(attempts)
        again = {name: new.excluded[name] for name in ("placement", "opened_at", "failed", "why")}
        connection.execute(new.on_conflict_do_update(index_elements=["job", "number"], set_=again), begun)


def _close(connection: Connection, actions: Sequence[Action], now: float) -> None:
    if actions:
        this = (attempts.c.job == bindparam("_job")) & (attempts.c.number == bindparam("_number"))
        ends = update(attempts).where(this).values(closed_at=now, failed=bindparam("_failed"), why=bindparam("_why"))
        ended = [{"_job": a.id, "_number": a.attempt, "_failed": a.failed, "_why": a.why} for a in actions]
        connection.execute(ends, ended)


def _new(spec: JobSpec, number: int, now: float) -> dict[str, Any]:
    job = Job(f"{spec.name}-{number}", Gang(()), now)
    return {
        **{"id": job.id, "name": spec.name, "number": number, "spec": to_dict(spec), "base_model": _base_model(spec)},
        **{"phase": JobPhase.QUEUED, "reason": "", "metrics": {}, "model": None},
        **{"created_at": now, "started_at": None, "ended_at": None},
        **{name: getattr(job, name) for name in _FIELDS},
    }


def _base_model(spec: JobSpec) -> str | None:
    return spec.model.ref if isinstance(spec, TrainJob) else None


def _job(row: Row) -> Job:
    fields = {name: row[name] for name in _FIELDS} | {"placement": tuple(row["placement"])}
    return replace(
        _asked(json.dumps(row["spec"], sort_keys=True)), id=row["id"], submitted_at=row["created_at"], **fields
    )


@lru_cache(maxsize=4096)
def _asked(spec: str) -> Job:
    """What the scheduler reads of a spec (JSON). Cached: each tick asks for every unfinished job."""
    job = parse(json.loads(spec))
    assert not isinstance(job, Service)
    gang, *larger = job_gangs(job)
    return Job(
        job.name,
        gang,
        submitted_at=0.0,
        retries=job.retries,
        max_runtime_s=job.max_runtime,
        larger=tuple(larger),
        grace_s=job.grace,
        grow_every_s=job.workers.grow_every,
    )


def _by_key(connection: Connection, key: str) -> Row | None:
    return first(connection, _OF_KEY, {"key": key})


def _same(row: Row, digest: str, key: str) -> Row:
    if row["digest"] != digest:
        raise ConflictError(
            f"idempotency_key `{key}` stands for job {row['id']}, whose spec is another one",
            hint="use a new key for a new spec",
            param="idempotency_key",
        )
    return row


def _written(path: Path, spec: Any) -> bool:
    try:
        return bool(read_json(path) == spec)
    except ValueError:
        return False


def _taken(layout: Layout, id: str) -> bool:
    """Whether a job of this id has left more than a spec that was never acknowledged."""
    dirs = layout.job(id)
    return dirs.root.exists() and any(path != dirs.spec for path in dirs.root.iterdir())
