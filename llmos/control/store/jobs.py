"""Jobs and their attempts: accepted once, changed only together with the event that says why."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, insert, or_, select, update

from llmos.control.store.database import Database, Row, first, rows
from llmos.control.store.events import append
from llmos.control.store.models import require
from llmos.control.store.statements import Read, Write
from llmos.control.store.tables import attempts, jobs
from llmos.control.store.tenants import require_tenant
from llmos.control.store.unfinished import FIELDS, Unfinished, some
from llmos.core.types import Failure, Gang, Job, JobPhase
from llmos.errors import ConflictError, NotFoundError
from llmos.files import read_json, write_json
from llmos.layout import JobDirs, Layout
from llmos.spec import DEFAULT_TENANT, TrainJob, to_dict
from llmos.spec import Job as JobSpec

_ADD = Write(insert(jobs), jobs.c.keys())
_NEWEST = Read(select(func.max(jobs.c.number)).where(jobs.c.name == bindparam("wanted")))
_OF_KEY = Read(select(jobs.c.id).where(jobs.c.idempotency_key == bindparam("wanted")))


class Jobs:
    """Every job there has been. A row has the columns of ``tables.jobs``."""

    def __init__(self, database: Database, layout: Layout) -> None:
        self._database = database
        self._layout = layout
        self._unfinished = Unfinished(database)
        self._ended: dict[str, JobPhase] = {}

    def submit(
        self,
        spec: JobSpec,
        digest: str,
        idempotency_key: str | None,
        now: float,
        tenants: Collection[str] | None = None,
    ) -> Row:
        """Accept ``spec`` (``model.ref`` pinned; ``digest`` is that of what was submitted) and return its row.

        Its ``after`` are pinned to the jobs (of ``tenants``, if given) that they mean now. Durable on return. The job's
        ``spec.json`` is there, too; after a power cut :meth:`mend` sees to it. The same key again gives the same job.
        Raises ConflictError if the key stands for another spec, NotFoundError if the model, the tenant or a job that it
        comes after is not there.
        """
        with self._database.write() as connection:
            if idempotency_key is not None and (known := _by_key(connection, idempotency_key)):
                return _same(known, digest, idempotency_key)
            if base := _base_model(spec):
                require(connection, base)
            spec = _pinned(connection, spec, tenants)
            number = self._next_number(connection, spec.name)
            row = _new(spec, number, now) | {"digest": digest, "idempotency_key": idempotency_key}
            _write(self._layout.job(row["id"]), row["spec"])
            _ADD.run(connection, [row])
            result = f", for model {spec.output.model}" if isinstance(spec, TrainJob) else ""
            append(connection, now, "job", row["id"], "submitted", f"{spec.steps} steps{result}")
        self._unfinished.submitted(row["id"], spec)
        return row

    def mend(self) -> None:
        """Write the ``spec.json`` of unfinished jobs that a power cut has left none of, or half of one."""
        query = select(jobs.c.id, jobs.c.spec).where(jobs.c.ended_at.is_(None))
        with self._database.read() as connection:
            wanted = {row["id"]: row["spec"] for row in rows(connection, query)}
        for id, spec in wanted.items():
            if not _written(self._layout.job(id).spec, spec):
                write_json(self._layout.job(id).spec, spec)

    def makers(self, ids: Collection[str]) -> set[str]:
        """Those of the jobs ``ids`` that make a model."""
        found: set[str] = set()
        for few in some(sorted(ids)):
            output = func.json_extract(jobs.c.spec, "$.output")
            with self._database.read() as connection:
                query = select(jobs.c.id).where(jobs.c.id.in_(few), output.is_not(None))
                found.update(connection.execute(query).scalars())
        return found

    def functions(self) -> set[str]:
        """The functions that unfinished jobs name, by their SHA-256."""
        sha256 = func.json_extract(jobs.c.spec, "$.function.sha256")
        query = select(sha256).where(jobs.c.ended_at.is_(None), sha256.is_not(None))
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    def find(self, ref: str, tenants: Collection[str] | None = None) -> Row:
        """The job with this id, else the newest of this name; of ``tenants``, if given. Raises NotFoundError."""
        with self._database.read() as connection:
            row = _meant(connection, ref, tenants)
        if row is None:
            raise NotFoundError(f"no job `{ref[:200]}`: expected a job's id or name", hint="see `llmos jobs`")
        return row

    def all(self, phase: str | None = None, tenants: Collection[str] | None = None) -> list[Row]:
        """Every job, or those in ``phase``, of ``tenants``, newest first."""
        query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.number.desc())
        query = query if phase is None else query.where(jobs.c.phase == phase)
        query = query if tenants is None else query.where(jobs.c.tenant.in_(tenants))
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
        return self._unfinished.read()

    def changed(self, ids: Iterable[str]) -> None:
        """Whoever has changed these jobs, and committed it, says so."""
        self._unfinished.changed(ids)

    def ended(self, ids: Iterable[str]) -> dict[str, JobPhase]:
        """The phases of those of ``ids`` that have ended. What has ended stays so: it is read once."""
        ids = set(ids)
        for few in some(sorted(ids - self._ended.keys())):
            query = select(jobs.c.id, jobs.c.phase).where(jobs.c.id.in_(few), jobs.c.ended_at.is_not(None))
            with self._database.read() as connection:
                self._ended |= {row["id"]: JobPhase(row["phase"]) for row in rows(connection, query)}
        return {id: self._ended[id] for id in ids & self._ended.keys()}

    def cancel(self, ref: str, now: float) -> Row:
        """Ask for the end of a job and return its row. One that has ended stays as it is."""
        id = self.find(ref)["id"]
        with self._database.write() as connection:
            wanted = (jobs.c.id == id) & jobs.c.ended_at.is_(None) & jobs.c.cancelled.is_(False)
            if connection.execute(update(jobs).where(wanted).values(cancelled=True)).rowcount:
                append(connection, now, "job", id, "cancel_requested")
        self.changed([id])
        return self.find(id)

    def run_times(self, most: int) -> list[tuple[str, str, float]]:
        """(tenant, name, seconds) of the jobs that succeeded last, at most so many, the oldest first."""
        query = (
            select(jobs.c.tenant, jobs.c.name, jobs.c.run_s)
            .where(jobs.c.phase == JobPhase.SUCCEEDED)
            .order_by(jobs.c.ended_at.desc())
            .limit(most)
        )
        with self._database.read() as connection:
            return [(row["tenant"], row["name"], row["run_s"]) for row in rows(connection, query)][::-1]

    def failures(self, most: int) -> list[Failure]:
        """The last attempts that failed and whose nodes may be to blame, at most so many; the oldest first."""
        query = select(attempts).where(attempts.c.blamed).order_by(attempts.c.closed_at.desc()).limit(most)
        with self._database.read() as connection:
            found = rows(connection, query)[::-1]
        return [Failure(row["closed_at"], row["job"], tuple(row["placement"])) for row in found]

    def known(self, idempotency_key: str | None) -> bool:
        """Whether a job was submitted with this key."""
        with self._database.read() as connection:
            return idempotency_key is not None and _by_key(connection, idempotency_key) is not None

    def _next_number(self, connection: Connection, name: str) -> int:
        """The next number of ``name`` whose directory, which is there then, is not taken: the database may be younger
        than the files."""
        ((newest,),) = _NEWEST.rows(connection, wanted=name)
        number = (newest or 0) + 1
        while _taken(self._layout.job(f"{name}-{number}")):
            number += 1
        return number


def _new(spec: JobSpec, number: int, now: float) -> dict[str, Any]:
    job = Job(f"{spec.name}-{number}", Gang(()), now)
    return {
        **{"id": job.id, "name": spec.name, "number": number, "spec": to_dict(spec), "base_model": _base_model(spec)},
        **{"tenant": spec.tenant, "priority": spec.priority, "measured": {}},
        **{"phase": JobPhase.QUEUED, "reason": "", "metrics": {}, "model": None},
        **{"created_at": now, "started_at": None, "ended_at": None},
        **{name: getattr(job, name) for name in FIELDS},
    }


def _base_model(spec: JobSpec) -> str | None:
    return spec.model.ref if isinstance(spec, TrainJob) else None


def _pinned(connection: Connection, spec: JobSpec, tenants: Collection[str] | None) -> JobSpec:
    """``spec`` of a tenant that there is, and after jobs by their ids. Raises NotFoundError.

    No job can come after itself, also not through others: it has no id before those that it comes after have theirs.
    """
    tenant = spec.tenant or DEFAULT_TENANT
    require_tenant(connection, tenant)
    after: dict[str, None] = {}
    for ref in spec.after:
        found = _meant(connection, ref, tenants)
        if found is None:
            what = f"no job `{ref[:200]}` to come after: expected the id or name of one that was submitted before"
            raise NotFoundError(what, hint="see `llmos jobs`", param="after")
        after[found["id"]] = None
    return spec.model_copy(update={"tenant": tenant, "after": tuple(after)})


def _meant(connection: Connection, ref: str, tenants: Collection[str] | None) -> Row | None:
    """The job with this id, else the newest of this name; of ``tenants``, if given."""
    wanted = or_(jobs.c.id == ref, jobs.c.name == ref)
    wanted = wanted if tenants is None else and_(wanted, jobs.c.tenant.in_(tenants))
    return first(connection, select(jobs).where(wanted).order_by(jobs.c.id != ref, jobs.c.number.desc()).limit(1))


def _by_key(connection: Connection, key: str) -> Row | None:
    found = _OF_KEY.rows(connection, wanted=key)
    return first(connection, select(jobs).where(jobs.c.id == found[0][0])) if found else None


def _same(row: Row, digest: str, key: str) -> Row:
    if row["digest"] != digest:
        raise ConflictError(
            f"idempotency_key `{key}` stands for job {row['id']}, whose spec is another one",
            hint="use a new key for a new spec",
            param="idempotency_key",
        )
    return row


def _write(dirs: JobDirs, spec: Any) -> None:
    """Not durable, nor in one step: nobody reads it before it is committed, and :meth:`Jobs.mend` knows what it is."""
    with open(dirs.spec, "w", encoding="utf-8") as file:
        file.write(json.dumps(spec) + "\n")


def _written(path: Path, spec: Any) -> bool:
    try:
        return bool(read_json(path) == spec)
    except ValueError:
        return False


def _taken(dirs: JobDirs) -> bool:
    """Make the directory of a job, if it is not there. Whether one of its id has left more there than a spec that was
    never acknowledged."""
    try:
        os.mkdir(dirs.root)
    except FileNotFoundError:
        dirs.root.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        return any(path != dirs.spec for path in dirs.root.iterdir())
    return False
