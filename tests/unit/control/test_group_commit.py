"""Threads that write at the same time wait for the disk together, and each for its own part alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from llmos.control.store import Store
from llmos.control.store.database import Database
from llmos.errors import ClusterError
from llmos.layout import Layout
from tests.unit.control.test_store import submit


class Ledger:
    """A database with one table, and how often it was committed."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.commits = 0
        with self.database.write() as connection:
            connection.exec_driver_sql("CREATE TABLE ledger (name TEXT UNIQUE)")
        event.listen(self.database._engine, "commit", self._committed)

    def _committed(self, connection: Connection) -> None:
        self.commits += connection.get_execution_options().get("write", False)

    def enter(self, name: str) -> str:
        with self.database.write() as connection:
            connection.exec_driver_sql("INSERT INTO ledger VALUES (?)", (name,))
        assert name in self.names()  # durable, so others see it
        return name

    def names(self) -> set[str]:
        with self.database.read() as connection:
            return {row[0] for row in connection.exec_driver_sql("SELECT name FROM ledger")}

    @contextmanager
    def crowd(self, *names: str) -> Iterator[list[object]]:
        """While the block runs, threads wait to enter ``names``; then what came of each: its name or its error."""
        found: list[object] = []
        with ThreadPoolExecutor(len(names)) as pool:
            with self.database.write():
                tasks = [pool.submit(self.enter, name) for name in names]
                while self.database._coming < len(names):
                    threading.Event().wait(0.001)
                yield found
            wait(tasks)
            found += [task.exception() or task.result() for task in tasks]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "control.db")


def test_a_crowd_commits_once_and_one_alone_does_not_wait_for_others(ledger: Ledger) -> None:
    ledger.enter("alone")
    assert ledger.commits == 1
    with ledger.crowd(*"abcdefgh") as found:
        assert ledger.names() == {"alone"}  # not even what is done is there for others before it is durable
    assert found == list("abcdefgh") and ledger.names() == {"alone", *"abcdefgh"}
    assert ledger.commits == 2


def test_who_fails_is_undone_alone(ledger: Ledger) -> None:
    with ledger.crowd("a", "a", "b") as found:
        pass
    assert sorted(map(str, found))[-1] == "b" and ledger.names() == {"a", "b"}
    assert sum("UNIQUE constraint failed" in str(one) for one in found) == 1
    with pytest.raises(ZeroDivisionError), ledger.crowd("c") as found:
        raise ZeroDivisionError
    assert ledger.names() == {"a", "b", "c"}


def test_a_commit_that_fails_is_said_to_all(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_connection: Connection) -> None:
        raise OperationalError("COMMIT", None, Exception("database or disk is full"))

    event.listen(ledger.database._engine, "commit", full)
    with pytest.raises(ClusterError, match="disk is full"), ledger.crowd("a", "b"):
        pass
    event.remove(ledger.database._engine, "commit", full)
    assert ledger.names() == set()
    ledger.enter("later")


def test_specs_that_a_power_cut_took_are_written_again(tmp_path: Path) -> None:
    store = Store(Layout(tmp_path))
    ids = [submit(store) for _ in range(3)]
    files = [Layout(tmp_path).job(id).spec for id in ids]
    whole = files[2].read_text()
    files[0].unlink()
    files[1].write_text(whole[: len(whole) // 2])
    store.close()
    Store(Layout(tmp_path)).close()
    assert [file.read_text() for file in files] == [whole] * 3
