"""Rows of jobs as the values that ``plan`` decides on: the very same ones for as long as nothing about them changes,
for ``plan`` finds out by identity what it need not look at again."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, String, select, type_coerce

from llmos.control.store.database import Database
from llmos.control.store.statements import Read, among
from llmos.control.store.tables import jobs
from llmos.control.translate import asked
from llmos.core.types import Job
from llmos.spec import Job as JobSpec
from llmos.spec import TrainFunction, TrainJob, parse

FIELDS = ("attempt", "attempts", "failures", "cancelled", "opened_at", "not_before", "run_s", "placement", "resumes")
"""The fields of ``core.types.Job`` that change, and are columns of their own."""
fields_of = attrgetter(*FIELDS)
_OPEN = select(jobs.c.id, jobs.c.created_at, jobs.c.measured, *(jobs.c[name] for name in FIELDS)).where(
    jobs.c.ended_at.is_(None)
)
_ALL = Read(_OPEN.order_by(jobs.c.created_at, jobs.c.id))
_SOME = Read(_OPEN.where(among(jobs.c.id, "ids")))
IDS_AT_ONCE = 500
"""So many are asked for in one query: SQLite bounds its parameters."""
READ_ALL_EVERY_S = 60.0
"""A control module that this one has replaced may have written last: that is seen after so long."""


class Unfinished:
    """The jobs that have not ended, first come first. Specs never change, so each is read once; of the rest only what
    was :meth:`changed` is read again, and once in a while everything."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[Any, ...], Job]] = {}  # rows as SQLite has them
        self._jobs: tuple[Job, ...] = ()
        self._stale: set[str] = set()
        self._fresh: dict[str, Job] = {}  # what was asked for: it need not be read and parsed
        self._all_read_at = -math.inf

    def changed(self, ids: Iterable[str]) -> None:
        """What is stored of these jobs has changed, and is committed."""
        with self._lock:
            self._stale.update(ids)

    def submitted(self, id: str, spec: JobSpec) -> None:
        """The job is stored, and that is committed."""
        job = asked(spec)
        with self._lock:
            self._stale.add(id)
            self._fresh[id] = job

    def read(self) -> tuple[Job, ...]:
        """The same tuple as before, if nothing has changed."""
        with self._lock:
            if time.monotonic() - self._all_read_at >= READ_ALL_EVERY_S:
                self._read_all()
            elif self._stale:
                self._read_some()
            self._stale.clear()
            self._fresh.clear()
            return self._jobs

    def _read_all(self) -> None:
        with self._database.read() as connection:
            rows = _ALL.rows(connection)
            asked_for = self._asked_for(connection, [row[0] for row in rows])
        self._keep({row[0]: self._entry(row, asked_for) for row in rows})
        self._all_read_at = time.monotonic()

    def _read_some(self) -> None:
        with self._database.read() as connection:
            rows = _SOME.rows(connection, ids=json.dumps(sorted(self._stale)))
            asked_for = self._asked_for(connection, [row[0] for row in rows])
        entries = {row[0]: self._entry(row, asked_for) for row in rows}
        known = {
            id: entries.get(id, entry) for id, entry in self._known.items() if id in entries or id not in self._stale
        }
        if more := entries.keys() - known.keys():
            known |= {id: entries[id] for id in more}
            known = dict(sorted(known.items(), key=lambda item: (item[1][1].submitted_at, item[0])))
        self._keep(known)

    def _asked_for(self, connection: Connection, ids: Sequence[str]) -> dict[str, Job]:
        """What was asked for in those of the jobs ``ids`` that were not known."""
        unread = [id for id in ids if id not in self._known and id not in self._fresh]
        return self._fresh | {id: _asked(spec) for id, spec in _specs(connection, unread).items()}

    def _entry(self, row: tuple[Any, ...], asked_for: Mapping[str, Job]) -> tuple[tuple[Any, ...], Job]:
        """A row and its job: the one that is known, if the row is still the same."""
        known = self._known.get(row[0])
        if known and known[0] == row:
            return known
        return row, _now(known[1] if known else asked_for[row[0]], *row)

    def _keep(self, known: dict[str, tuple[tuple[Any, ...], Job]]) -> None:
        self._known = known
        found = tuple(job for _, job in known.values())
        if len(found) != len(self._jobs) or any(a is not b for a, b in zip(found, self._jobs, strict=True)):
            self._jobs = found


def _now(job: Job, id: str, created_at: float, measured: str, *values: Any) -> Job:
    """``job`` as its row says it is now."""
    found = {} if measured == "{}" else json.loads(measured)
    goodput = tuple(sorted((int(size), value) for size, value in found.get("goodput", {}).items()))
    resize_s = found.get("resize_s", 0.0)
    return job.but(id=id, submitted_at=created_at, goodput=goodput, resize_s=resize_s, **changed(values))


def changed(values: Sequence[Any]) -> dict[str, Any]:
    """The FIELDS of a job, in that order, as SQLite has them, as those of ``core.types.Job``."""
    found = dict(zip(FIELDS, values, strict=True))
    placement = found["placement"]
    found["placement"] = () if placement == "[]" else tuple(json.loads(placement))
    return found | {"cancelled": bool(found["cancelled"]), "resumes": bool(found["resumes"])}


def some(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """``ids`` in pieces that fit a query."""
    return (ids[start : start + IDS_AT_ONCE] for start in range(0, len(ids), IDS_AT_ONCE))


def _specs(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """The specs of jobs (JSON), by id."""
    found: dict[str, str] = {}
    for few in some(ids):
        query = select(jobs.c.id, type_coerce(jobs.c.spec, String)).where(jobs.c.id.in_(few))
        found |= {row[0]: row[1] for row in connection.execute(query)}
    return found


@lru_cache(maxsize=1024)
def _asked(spec: str) -> Job:
    """What the scheduler reads of a spec (JSON). Cached: the same is often submitted many times."""
    job = parse(json.loads(spec))
    assert isinstance(job, TrainJob | TrainFunction)
    return asked(job)
