"""Statements that the driver runs itself write and read what SQLAlchemy's own would, and fail as they do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from llmos.control.store.database import Database, rows
from llmos.control.store.statements import Read, Write, among
from llmos.control.store.tables import attempts, events
from llmos.errors import ClusterError

_EVENTS = ("at", "kind", "subject", "what", "why")


def _events(count: int) -> list[dict[str, object]]:
    return [{"at": float(i), "kind": "job", "subject": f"j{i}", "what": "began", "why": ""} for i in range(count)]


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "control.db")


def test_what_is_written_is_what_is_read_by_either(database: Database) -> None:
    row = {"job": "a-1", "number": 1, "placement": ["n0", "n1"], "opened_at": 1.0, "failed": True, "blamed": False}
    with database.write() as connection:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        Write(insert(attempts), (*row, "why")).run(connection, [row | {"why": "x"}, row | {"number": 2, "why": "y"}])
        change = Write(update(attempts).where(attempts.c.number == bindparam("_number")), ("placement",))
        change.run(connection, [{"_number": 2, "placement": []}])
        both = rows(connection, select(attempts).order_by(attempts.c.number))
        raw = Read(select(attempts.c.placement, attempts.c.failed).where(attempts.c.number == bindparam("wanted")))
        assert raw.rows(connection, wanted=1) == [('["n0", "n1"]', 1)]
        connection.exec_driver_sql("DELETE FROM attempts")
    assert both == [
        row | {"closed_at": None, "why": "x"},
        row | {"number": 2, "placement": [], "closed_at": None, "why": "y"},
    ]


def test_as_many_are_asked_for_at_once_as_there_are(database: Database) -> None:
    with database.write() as connection:
        Write(insert(events), _EVENTS).run(connection, _events(40_000))
    asked = Read(select(events.c.subject).where(among(events.c.subject, "ids")))
    with database.read() as connection:
        found = asked.rows(connection, ids=json.dumps([f"j{i}" for i in range(0, 80_000, 2)]))
    assert len(found) == 20_000 and ("j2",) in found


def _add(database: Database, some: list[dict[str, object]]) -> None:
    with database.write() as connection:
        Write(insert(events), _EVENTS).run(connection, some)


def test_it_fails_as_others_do_and_its_part_is_undone(database: Database) -> None:
    with pytest.raises(IntegrityError):
        _add(database, [*_events(1), _events(1)[0] | {"what": None}])
    with database.read() as connection:
        assert rows(connection, select(events)) == []
    with database.write() as connection:
        connection.exec_driver_sql("DROP TABLE events")
    with pytest.raises(ClusterError, match="no such table"):
        _add(database, _events(1))
