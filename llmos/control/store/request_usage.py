"""What requests have used: each counted once, and summed by day, tenant, key, service and model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert

from llmos.control.store.database import Database, Row, rows
from llmos.control.store.tables import recent_requests, request_usage
from llmos.usage import CLIENT_GONE, Record

REMEMBERED_S = 3600.0
"""How long a request's id is kept after it was counted, as time passes for what is counted: a pause of all does not
age it. Whoever sends a record again does so before newer ones, within seconds of being able to."""
KEPT_DAYS = 400
_PRUNE_EVERY_S = 60.0
_DAY_S = 86400
_SOME = 500  # SQLite takes so many parameters at once, and more
_WHOSE = ("day", "tenant", "key", "service", "model")
_SUMS = ("requests", "failed", "abandoned", "prompt", "cached", "completion")

Sums = Counter[str]


class RequestUsage:
    """The usage of requests. A row has the columns of ``tables.request_usage``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pruned_at = 0.0

    def add(self, records: Iterable[Record], now: float) -> int:
        """Count ``records`` and return how many of them were new, or corrected what a lower witness had said.

        Durable on return. A record that was counted before changes nothing, in whatever order they come.
        """
        best: dict[str, Record] = {}
        for record in records:
            if record.id not in best or best[record.id].witness < record.witness:
                best[record.id] = record
        with self._database.write() as connection:
            self._prune(connection, now)
            known = _known(connection, list(best))
            news = [one for one in best.values() if one.id not in known or known[one.id]["witness"] < one.witness]
            changes: dict[tuple[str, ...], Sums] = {}
            for record in news:
                row = _recent(record, now)
                _count(changes, row, 1)
                if before := known.get(record.id):
                    _count(changes, before, -1)
            if news:
                _remember(connection, [_recent(record, now) for record in news])
                _sum_up(connection, changes)
        return len(news)

    def sums(self, by: Sequence[str], since: str, **only: str | None) -> list[Row]:
        """The sums from the day ``since`` (YYYY-MM-DD, UTC) on, grouped by some of the columns that say whose they are.
        ``only`` keeps those of one tenant, key, service or model."""
        table = request_usage.c
        wanted: list[ColumnElement[bool]] = [table.day >= since, table.requests > 0]  # a correction may leave nothing
        wanted += [table[name] == value for name, value in only.items() if value is not None]
        columns: list[Any] = [table[name] for name in by]
        sums = [func.coalesce(func.sum(table[name]), 0).label(name) for name in _SUMS]
        query = select(*columns, *sums).where(*wanted).group_by(*columns).order_by(*columns)
        with self._database.read() as connection:
            return rows(connection, query)

    def _prune(self, connection: Connection, now: float) -> None:
        """Forget ids that nobody sends again, and days that are long past. The clock may have gone back."""
        if 0 <= now - self._pruned_at < _PRUNE_EVERY_S:
            return
        self._pruned_at = now
        counted_at = recent_requests.c.counted_at
        # What a clock that was ahead has stamped would make all that comes after it look old
        connection.execute(update(recent_requests).where(counted_at > now).values(counted_at=now))
        if newest := connection.execute(select(func.max(counted_at))).scalar():
            connection.execute(delete(recent_requests).where(counted_at < newest - REMEMBERED_S))
        connection.execute(delete(request_usage).where(request_usage.c.day < day(now - KEPT_DAYS * _DAY_S)))


def day(at: float) -> str:
    """YYYY-MM-DD in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def _known(connection: Connection, ids: list[str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for start in range(0, len(ids), _SOME):
        query = select(recent_requests).where(recent_requests.c.id.in_(ids[start : start + _SOME]))
        found |= {row["id"]: row for row in rows(connection, query)}
    return found


def _recent(record: Record, now: float) -> Row:
    fields = asdict(record)
    return {"day": day(fields.pop("at")), "counted_at": now, **fields}


def _count(changes: dict[tuple[str, ...], Sums], row: Row, sign: int) -> None:
    sums = changes.setdefault(tuple(row[name] for name in _WHOSE), Counter())
    sums["requests"] += sign
    sums["failed"] += sign * (row["status"] >= 500)
    sums["abandoned"] += sign * (row["status"] == CLIENT_GONE)
    for name in ("prompt", "cached", "completion"):
        sums[name] += sign * row[name]


def _remember(connection: Connection, found: list[Row]) -> None:
    adding = insert(recent_requests)
    replaced = {column.name: adding.excluded[column.name] for column in recent_requests.columns}
    connection.execute(adding.on_conflict_do_update(index_elements=["id"], set_=replaced), found)


def _sum_up(connection: Connection, changes: dict[tuple[str, ...], Sums]) -> None:
    adding = insert(request_usage)
    added = {name: request_usage.c[name] + adding.excluded[name] for name in _SUMS}
    values = [
        {**dict(zip(_WHOSE, whose, strict=True)), **{name: sums[name] for name in _SUMS}}
        for whose, sums in changes.items()
    ]
    connection.execute(adding.on_conflict_do_update(index_elements=list(_WHOSE), set_=added), values)
