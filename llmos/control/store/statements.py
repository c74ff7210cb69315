"""Statements that are made once and run by SQLite's driver itself.

What a job comes through on its way is written with these: SQLAlchemy takes several times as long for a statement as
SQLite does. They run in the transaction that is open on the connection, and fail with the same errors.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import JSON, Column, ColumnElement, Connection, Insert, Select, Update, bindparam, func, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import IntegrityError, OperationalError

Row = dict[str, Any]
_NAMED = sqlite.dialect(paramstyle="named")


class Write:
    """An INSERT or UPDATE of the columns ``names``, whose other parameters are named in it."""

    def __init__(self, statement: Insert | Update, names: Sequence[str]) -> None:
        compiled = statement.compile(dialect=_NAMED, column_keys=list(names))
        self._sql = str(compiled)
        self._json = [name for name, bound in compiled.binds.items() if isinstance(bound.type, JSON)]

    def run(self, connection: Connection, rows: Iterable[Row]) -> None:
        """Run it for each of ``rows``."""
        with _as_others(self._sql):
            _driver(connection).executemany(self._sql, [self._encoded(row) for row in rows])

    def _encoded(self, row: Row) -> Row:
        return row | {name: json.dumps(row[name]) for name in self._json}


class Read:
    """A SELECT, whose parameters are named in it."""

    def __init__(self, query: Select[Any]) -> None:
        self._sql = str(query.compile(dialect=_NAMED))

    def rows(self, connection: Connection, **given: Any) -> list[tuple[Any, ...]]:
        """Its rows as SQLite has them: JSON is text, and a boolean is 0 or 1."""
        with _as_others(self._sql):
            return list(_driver(connection).execute(self._sql, given))


def among(column: Column[Any], name: str) -> ColumnElement[bool]:
    """Whether ``column`` is in the JSON array that the parameter ``name`` is, which may be long: SQLite bounds the
    number of parameters."""
    return column.in_(select(func.json_each(bindparam(name)).table_valued("value").c.value))


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


@contextmanager
def _as_others(sql: str) -> Iterator[None]:
    """Raise the errors that SQLAlchemy makes of the driver's."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OperationalError(sql, None, error) from error
    except sqlite3.IntegrityError as error:
        raise IntegrityError(sql, None, error) from error
