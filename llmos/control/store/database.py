"""control.db: an SQLite file in which what was committed survives a crash and a power cut.

To be durable a commit waits for the disk. Threads that write at the same time wait for it together (group commit): each
does its part in one transaction, undone alone if it fails, and the last of them commits for all.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Select, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, OperationalError

from llmos.control.store.migrations import MIGRATIONS
from llmos.errors import ClusterError, ConflictError, DataError

Row = dict[str, Any]

BUSY_TIMEOUT_MS = 10_000
"""How long to wait for another process: the control module that this one replaces may still be dying."""
MOST_TOGETHER = 256
"""So many parts of one transaction at most: others want to read them."""
PATIENCE_S = 0.2
"""Who has done its part waits so long for those that were about to add theirs, then commits without them."""


class _Batch:
    """A transaction that several threads add to, one after the other, while they hold the writer's lock.

    Once it has ``ended`` it is ``durable``, or all of it is undone and ``error`` is why, if that is known.
    """

    def __init__(self, engine: Engine) -> None:
        self.ended = threading.Event()
        self.durable = False
        self.error: BaseException | None = None
        self.parts = 0
        self._connection = engine.connect()
        try:
            self._transaction = self._connection.begin()
            # Who begins as a reader and then writes cannot wait for another process: SQLite fails at once (SQLITE_BUSY)
            self._raw = _begin(self._connection, "BEGIN IMMEDIATE")
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def part(self) -> Iterator[Connection]:
        """What one thread adds: undone alone if it raises. Some errors, such as a full disk, undo all parts."""
        self.parts += 1
        self._raw.execute("SAVEPOINT part")
        try:
            yield self._connection
        except BaseException as error:
            if not self.whole:
                self.error = error
                raise
            self._raw.execute("ROLLBACK TO part")
            self._raw.execute("RELEASE part")
            raise
        self._raw.execute("RELEASE part")

    @property
    def whole(self) -> bool:
        """Whether SQLite still has the transaction: it may have ended it by itself, and would commit nothing."""
        return bool(self._raw.in_transaction)

    def end(self) -> None:
        """Commit. Nothing is acknowledged before ``durable`` is set."""
        try:
            if self.whole:
                self._transaction.commit()
                self.durable = True
        except DatabaseError as error:
            self.error = error
        finally:
            if not self.durable:
                self._connection.invalidate()  # the transaction may still be open there
            self._connection.close()
            self.ended.set()


class Database:
    """Transactions on the file at ``path``, from any thread. Raises ConflictError if a newer llmos has written it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = threading.Lock()  # SQLite has one writer; waiting here is fair, waiting there is polling
        self._batch: _Batch | None = None  # the transaction that is open
        self._coming = 0  # threads that wait for their turn
        self._counting = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it holds digests of keys
        self._engine = create_engine(URL.create("sqlite", database=str(path)))
        event.listen(self._engine, "connect", _configure)
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
            _begin(connection, "BEGIN")
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A part of the one transaction that may write; durable once the block has ended, undone if it raises.

        Raises ClusterError when the file cannot be written.
        """
        try:
            with self._turn():
                batch = self._joined()
                try:
                    with batch.part() as connection:
                        yield connection
                finally:
                    if not (self._coming and batch.whole) or batch.parts >= MOST_TOGETHER:
                        self._end()
            while not batch.ended.wait(PATIENCE_S):  # who was coming was interrupted, or takes long
                with self._turn():
                    self._end()
        except OperationalError as error:
            raise self._unwritten(error.orig) from error
        if not batch.durable:
            raise self._unwritten(batch.error) from batch.error

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Be the one that writes."""
        with self._counting:
            self._coming += 1
        try:
            self._writer.acquire()
        finally:
            with self._counting:
                self._coming -= 1
        try:
            yield
        finally:
            self._writer.release()

    def _joined(self) -> _Batch:
        """The transaction that is open, or a new one."""
        if self._batch is None:
            self._batch = _Batch(self._engine)
        return self._batch

    def _end(self) -> None:
        """Commit what is open."""
        batch, self._batch = self._batch, None
        if batch:
            batch.end()

    def _unwritten(self, why: object) -> ClusterError:
        return ClusterError(f"the store {self._path} cannot be written: {why}", hint="is its disk full or read-only?")

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


def _begin(connection: Connection, how: str) -> Any:
    """Begin a transaction; the driver's connection."""
    raw: Any = connection.connection.driver_connection
    try:
        raw.execute(how)
    except sqlite3.OperationalError as error:
        raise OperationalError(how, None, error) from error
    return raw
