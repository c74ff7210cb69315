"""control.db: an SQLite file in which what was committed survives a crash and a power cut."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, OperationalError

from llmos.control.store.migrations import MIGRATIONS
from llmos.errors import ClusterError, ConflictError, DataError

Row = dict[str, Any]

BUSY_TIMEOUT_MS = 10_000
"""How long to wait for another process: the control module that this one replaces may still be dying."""


class Database:
    """Transactions on the file at ``path``, from any thread. Raises ConflictError if a newer llmos has written it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = threading.Lock()  # SQLite has one writer; waiting here is fair, waiting there is polling
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it holds digests of keys
        self._engine = create_engine(URL.create("sqlite", database=str(path)))
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        try:
            with self.write() as connection:
                self._migrate(connection)
        except DatabaseError as error:
            raise DataError(
                f"{path} is damaged or not a database of llmos: {error.orig}",
                hint="restore it from a backup, or move it away to start with an empty one",
            ) from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database throughout."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The one transaction that may write; durable once the block has ended, undone if it raises.

        Raises ClusterError when the file cannot be written.
        """
        with self._writer, self._engine.connect().execution_options(write=True) as connection:
            try:
                with connection.begin():
                    yield connection
            except OperationalError as error:
                raise ClusterError(
                    f"the store {self._path} cannot be written: {error.orig}", hint="is its disk full or read-only?"
                ) from error

    def close(self) -> None:
        self._engine.dispose()

    def _migrate(self, connection: Connection) -> None:
        found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if found > len(MIGRATIONS):
            raise ConflictError(
                f"{self._path} was written by a newer llmos (schema {found}; this one knows up to {len(MIGRATIONS)})",
                hint="start the newer llmos, or name another directory with LLMOS_STATE_DIR",
            )
        for step in MIGRATIONS[found:]:
            step(connection)
        connection.exec_driver_sql(f"PRAGMA user_version = {len(MIGRATIONS)}")


def first(connection: Connection, query: Select[Any]) -> Row | None:
    """The first row of ``query``, if it has one."""
    row = connection.execute(query).mappings().first()
    return None if row is None else {str(name): value for name, value in row.items()}


def rows(connection: Connection, query: Select[Any]) -> list[Row]:
    """Every row of ``query``."""
    return [{str(name): value for name, value in row.items()} for row in connection.execute(query).mappings()]


def _configure(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # Python's driver must not begin transactions by itself: _begin does
    for setting in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        "synchronous = FULL",  # in WAL mode, NORMAL loses commits at a power cut
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {setting}").close()


def _begin(connection: Connection) -> None:
    # Who begins as a reader and then writes cannot wait for another writer: SQLite fails at once (SQLITE_BUSY)
    immediate = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
