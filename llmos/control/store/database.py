"""control.db: an SQLite file in which what was committed survives a crash and a power cut.

To be durable a commit waits for the disk. Threads that write at the same time wait for it together (group commit): each
does its part in one transaction, undone alone if it fails, and the last of them commits for all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, OperationalError

from llmos.control.store.tables import metadata
from llmos.errors import ClusterError, ConflictError, DataError

Row = dict[str, Any]

BUSY_TIMEOUT_MS = 10_000
"""How long to wait for another process: the control module that this one replaces may still be dying."""

MOST_TOGETHER = 256
"""So many parts of one transaction at most: others want to read them."""

MIGRATIONS: tuple[Callable[[Connection], None], ...] = (metadata.create_all, metadata.create_all)
"""Step ``n`` brings a database of version ``n`` to version ``n + 1``; version 0 is an empty file. The second adds the
table ``drained``."""


class _Batch:
    """A transaction that several threads add to, one after the other.

    Once it has ``ended`` it is durable, or ``error`` is why it is not.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.ended = threading.Event()
        self.error: DatabaseError | None = None
        self.parts = 0
        try:
            self._transaction = connection.begin()
        except DatabaseError:
            connection.close()
            raise

    @contextmanager
    def part(self) -> Iterator[Connection]:
        """What one thread adds: undone alone if it raises."""
        self.parts += 1
        self.connection.exec_driver_sql("SAVEPOINT part")
        try:
            yield self.connection
        except BaseException:
            self.connection.exec_driver_sql("ROLLBACK TO part")
            raise
        finally:
            self.connection.exec_driver_sql("RELEASE part")

    def end(self) -> None:
        """Commit."""
        try:
            self._transaction.commit()
        except DatabaseError as error:
            self.error = error
            self.connection.invalidate()  # the transaction may still be open there
        finally:
            self.connection.close()
            self.ended.set()


class Database:
    """Transactions on the file at ``path``, from any thread. Raises ConflictError if a newer llmos has written it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = threading.Lock()  # SQLite has one writer; waiting here is fair, waiting there is polling
        self._batch: _Batch | None = None
        self._coming = 0  # threads that will add to it
        self._counting = threading.Lock()
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
        with self._counting:
            self._coming += 1
        try:
            with self._writer:
                batch = self._joined()
                try:
                    with batch.part() as connection:
                        yield connection
                finally:
                    if not self._coming or batch.parts >= MOST_TOGETHER:
                        self._batch = None
                        batch.end()
            batch.ended.wait()
            if batch.error:
                raise batch.error
        except OperationalError as error:
            raise ClusterError(
                f"the store {self._path} cannot be written: {error.orig}", hint="is its disk full or read-only?"
            ) from error

    def close(self) -> None:
        self._engine.dispose()

    def _joined(self) -> _Batch:
        """The transaction that is open, or a new one."""
        with self._counting:
            self._coming -= 1
        if self._batch is None:
            self._batch = _Batch(self._engine.connect().execution_options(write=True))
        return self._batch

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


def first(connection: Connection, query: Select[Any], given: Row | None = None) -> Row | None:
    """The first row of ``query``, if it has one. ``given`` are the values of its parameters."""
    row = connection.execute(query, given).mappings().first()
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
