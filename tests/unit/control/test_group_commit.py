"""Threads that write at the same time wait for the disk together, and each for its own part alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from llmos.control.store import Store
from llmos.control.store.database import PATIENCE_S, Database
from llmos.errors import ClusterError
from llmos.layout import Layout
from tests.unit.control.test_store import submit

CROWD = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from llmos.control.store import Store
from llmos.layout import Layout
from tests.unit.control.test_store import submit

store = Store(Layout(Path(sys.argv[1])))

def tell(number):
    key = f"{sys.argv[2]}-{number}"
    os.write(1, f"{key} {submit(store, key)}\\n".encode())  # in one piece

with ThreadPoolExecutor(8) as pool:
    list(pool.map(tell, range(10_000)))
"""
LIVES = 2


class Ledger:
    """A database with one table, and how often it was committed."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.commits = 0
        with self.database.write() as connection:
            connection.exec_driver_sql("CREATE TABLE ledger (name TEXT UNIQUE)")
        self._end, self.database._end = self.database._end, self._count  # type: ignore[method-assign]

    def _count(self) -> None:
        self.commits += self.database._batch is not None
        self._end()

    def enter(self, name: str, how: str = "INSERT") -> str:
        with self.database.write() as connection:
            connection.exec_driver_sql(f"{how} INTO ledger VALUES (?)", (name,))
        assert name in self.names()  # durable, so others see it
        return name

    def names(self) -> set[str]:
        with self.database.read() as connection:
            return {row[0] for row in connection.exec_driver_sql("SELECT name FROM ledger")}

    @contextmanager
    def crowd(self, *names: str, how: str = "INSERT") -> Iterator[list[object]]:
        """While the block runs, threads wait to enter ``names``; then what came of each: its name or its error."""
        found: list[object] = []
        with ThreadPoolExecutor(len(names)) as pool:
            try:
                with self.database.write():
                    tasks = [pool.submit(self.enter, name, how) for name in names]
                    while self.database._coming < len(names):
                        time.sleep(0.001)
                    yield found
            finally:
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


def test_a_transaction_that_sqlite_has_ended_by_itself_is_acknowledged_to_nobody(ledger: Ledger) -> None:
    """As after some errors of the disk: what came before in it is undone, and a commit would do nothing."""
    ledger.enter("there")
    with pytest.raises(ClusterError), ledger.crowd("a", "there", "b", how="INSERT OR ROLLBACK") as found:
        pass
    kept = {str(one) for one in found if isinstance(one, str)}
    assert ledger.names() == {"there", *kept}
    assert all(isinstance(one, ClusterError) or "UNIQUE" in str(one) for one in found if not isinstance(one, str))
    assert ledger.enter("later") in ledger.names()


def test_a_commit_that_fails_is_said_to_all(ledger: Ledger) -> None:
    def full(_connection: Connection) -> None:
        raise OperationalError("COMMIT", None, Exception("database or disk is full"))

    event.listen(ledger.database._engine, "commit", full)
    with pytest.raises(ClusterError, match="disk is full"), ledger.crowd("a", "b") as found:
        pass
    assert all(isinstance(one, ClusterError) for one in found)
    event.remove(ledger.database._engine, "commit", full)
    assert ledger.names() == set()
    assert ledger.enter("later") in ledger.names()


def test_nobody_waits_for_one_that_never_comes(ledger: Ledger) -> None:
    ledger.database._coming += 1  # as if it had been interrupted
    began = time.monotonic()
    ledger.enter("a")
    assert ledger.names() == {"a"} and time.monotonic() - began >= PATIENCE_S


def test_what_a_crowd_was_told_survives_kills(tmp_path: Path) -> None:
    told: dict[str, str] = {}
    for life in range(LIVES):
        command = [sys.executable, "-c", CROWD, str(tmp_path), str(life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told |= dict(process.stdout.readline().split() for _ in range(20 * (life + 1)))
            process.send_signal(signal.SIGKILL)
            told |= dict(line.split() for line in process.stdout.read().splitlines())
    store = Store(Layout(tmp_path))
    rows = {row["idempotency_key"]: row["id"] for row in store.jobs.all()}
    assert told.items() <= rows.items() and len(set(rows.values())) == len(rows) == len(store.jobs.unfinished())
    assert all([event["what"] for event in store.events.of("job", id)] == ["submitted"] for id in rows.values())


def test_specs_that_a_power_cut_took_are_written_again(tmp_path: Path) -> None:
    store = Store(Layout(tmp_path))
    ids = [submit(store) for _ in range(3)]
    files = [Layout(tmp_path).job(id).spec for id in ids]
    whole = files[2].read_text()
    files[0].unlink()
    files[1].write_text(whole[: len(whole) // 2])
    store.close()
    Store(Layout(tmp_path)).close()
    found = {file.read_text().replace("\n", "").replace(" ", "") for file in files}
    assert found == {whole.replace("\n", "").replace(" ", "")}


def test_threads_do_their_parts_one_at_a_time(ledger: Ledger) -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def enter(number: int) -> None:
        nonlocal inside, most
        with ledger.database.write() as connection:
            with lock:
                inside += 1
                most = max(most, inside)
            connection.exec_driver_sql("INSERT INTO ledger VALUES (?)", (str(number),))
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(100)))
    assert most == 1 and len(ledger.names()) == 100
