"""What happened, to what, and why: appended in the transaction of the change it tells of, never changed."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select

from llmos.control.store.database import Database, Row, rows
from llmos.control.store.statements import Write
from llmos.control.store.tables import events

_APPEND = Write(insert(events), ("at", "kind", "subject", "what", "why"))


class Events:
    """The events of all subjects. ``kind`` is job, service, model, key, node or tenant; ``subject`` its id or name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, kind: str, subject: str) -> list[Row]:
        """``{at, subject, what, why}`` of one subject, oldest first."""
        query = (
            select(events.c.at, events.c.subject, events.c.what, events.c.why)
            .where(events.c.kind == kind, events.c.subject == subject)
            .order_by(events.c.number)
        )
        with self._database.read() as connection:
            return rows(connection, query)

    def add(self, at: float, kind: str, subject: str, what: str, why: str) -> None:
        """Append in a transaction of its own, unless it repeats the subject's last one: a loop that fails every second
        says so once."""
        newest = (
            select(events.c.what, events.c.why)
            .where(events.c.kind == kind, events.c.subject == subject)
            .order_by(events.c.number.desc())
            .limit(1)
        )
        with self._database.write() as connection:
            last = connection.execute(newest).first()
            if last is None or tuple(last) != (what, why):
                append(connection, at, kind, subject, what, why)


def append_all(connection: Connection, told: Sequence[Row]) -> None:
    """Append several, in order: rows of ``tables.events`` without their numbers."""
    if told:
        _APPEND.run(connection, told)


def append(connection: Connection, at: float, kind: str, subject: str, what: str, why: str = "") -> None:
    """Append an event in the transaction of the change that it tells of."""
    append_all(connection, [{"at": at, "kind": kind, "subject": subject, "what": what, "why": why}])
