from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmos.control.store import Store
from llmos.control.store.database import MIGRATIONS
from llmos.core.types import Action, JobPhase, Verb
from llmos.errors import ClusterError, ConflictError, DataError, NotFoundError
from llmos.layout import Layout
from llmos.spec import TrainJob, digest, parse
from tests.unit.control.world import World

SUBMITTER = """
import sys
from pathlib import Path
from llmos.control.store import Store
from llmos.layout import Layout
from llmos.spec import digest, parse

store = Store(Layout(Path(sys.argv[1])))
for i in range(10_000):
    key = f"{sys.argv[2]}-{i}"
    spec = parse({"kind": "TrainJob", "name": "a", "model": {"preset": "tiny"}, "data": {"path": "/x"}, "steps": i + 1,
                  "output": {"model": "a"}})
    row = store.jobs.submit(spec, digest(spec), key, float(i))
    print(key, row["id"], flush=True)
"""


def job_spec(name: str = "a", **changes: object) -> TrainJob:
    spec = parse(
        {
            **{"kind": "TrainJob", "name": name, "model": {"preset": "tiny"}, "data": {"path": "/x"}, "steps": 7},
            **{"output": {"model": name}, **changes},
        }
    )
    assert isinstance(spec, TrainJob)
    return spec


def submit(store: Store, key: str | None = None, **changes: object) -> str:
    spec = job_spec(**changes)  # type: ignore[arg-type]
    return str(store.jobs.submit(spec, digest(spec), key, 1.0)["id"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Layout(tmp_path))


def test_what_was_acknowledged_survives_kills_and_is_there_once(tmp_path: Path) -> None:
    acknowledged: dict[str, str] = {}
    for life in range(4):
        command = [sys.executable, "-c", SUBMITTER, str(tmp_path), str(life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            acknowledged |= dict([process.stdout.readline().split()])
            time.sleep(random.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
            acknowledged |= dict(line.split() for line in process.stdout.read().splitlines())
    store = Store(Layout(tmp_path))
    rows = {row["idempotency_key"]: row for row in store.jobs.all()}
    assert len(rows) == len(store.jobs.all()) == len(store.jobs.unfinished())
    assert {key: rows[key]["id"] for key in acknowledged} == acknowledged
    assert len(rows) - len(acknowledged) <= 4  # at most one per life was accepted and not yet told
    for row in rows.values():
        assert json.loads(Layout(tmp_path).job(row["id"]).spec.read_text()) == row["spec"]
        assert [event["what"] for event in store.events.of("job", row["id"])] == ["submitted"]
    unaware = submit(store, "0-0", name="a", steps=1)  # a client that repeats what it heard no answer to
    assert unaware == rows["0-0"]["id"]


def test_it_is_written_through_and_for_nobody_else(tmp_path: Path) -> None:
    store = Store(Layout(tmp_path))
    submit(store)
    assert tmp_path.joinpath("control.db").stat().st_mode & 0o777 == 0o600
    assert tmp_path.joinpath("control.db-wal").stat().st_mode & 0o777 == 0o600
    with store._database.read() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "foreign_keys")]
        assert found == [2, 1]
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_newer_schema_is_refused_and_an_empty_one_is_brought_up(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "control.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)
    Store(Layout(tmp_path)).close()
    with sqlite3.connect(tmp_path / "control.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConflictError, match=r"newer llmos \(schema 99"):
        Store(Layout(tmp_path))


def test_a_database_of_an_older_llmos_gets_what_it_lacks(tmp_path: Path) -> None:
    Store(Layout(tmp_path)).close()
    with sqlite3.connect(tmp_path / "control.db") as connection:
        connection.executescript("DROP TABLE drained; PRAGMA user_version = 1;")
    store = Store(Layout(tmp_path))
    store.drains.add("n0", 1.0, "fan")
    assert store.drains.all() == {"n0": {"node": "n0", "at": 1.0, "why": "fan"}}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "control.db").write_bytes(b"not a database at all, but longer than a header" * 100)
    with pytest.raises(DataError, match=r"control\.db is damaged"):
        Store(Layout(tmp_path))


def test_a_write_that_cannot_be_made_is_undone_and_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store._database.write() as connection:
        connection.exec_driver_sql("PRAGMA query_only = 1")  # what a full or read-only disk answers to a write
    with pytest.raises(ClusterError, match="cannot be written"):
        submit(store)
    assert store.jobs.all() == []


def test_a_plan_is_recorded_whole_or_not_at_all(store: Store) -> None:
    known = submit(store)
    plan = [Action(Verb.START, known, 1, ("n",)), Action(Verb.START, "stranger-1", 1, ("n",))]
    with pytest.raises(AssertionError, match="stranger-1"):
        store.record(plan, 2.0)
    assert store.jobs.find(known)["phase"] == "queued"
    assert [event["what"] for event in store.events.of("job", known)] == ["submitted"]


def test_the_life_of_a_job(store: Store) -> None:
    id = submit(store, max_runtime="1h", retries=3)
    store.record([Action(Verb.START, id, 1, ("n",), why="room")], 10.0)
    store.record([], 12.0, running=[id])
    job = store.jobs.unfinished()[0]
    assert (job.attempt, job.attempts, job.opened_at, job.placement) == (1, 1, 10.0, ("n",))
    assert (job.retries, job.max_runtime_s, job.gang.bundles[0].cpus) == (3, 3600.0, 1.0)
    again = Action(Verb.CLOSE, id, 1, phase=JobPhase.QUEUED, failed=True, not_before=40.0, why="boom")
    store.record([again], 20.0, results={id: {"metrics": {"step": 3}}})
    job, row = store.jobs.unfinished()[0], store.jobs.find(id)
    assert (job.attempt, job.failures, job.not_before, job.run_s) == (0, 1, 40.0, 10.0)
    assert (row["phase"], row["reason"], row["metrics"]) == ("queued", "boom", {"step": 3})
    store.record([Action(Verb.START, id, 2, ("m",))], 40.0)
    store.record([Action(Verb.CLOSE, id, 2, phase=JobPhase.SUCCEEDED)], 50.0, results={id: {"model": "a@1"}})
    row = store.jobs.find(id)
    assert store.jobs.unfinished() == ()
    assert (row["started_at"], row["ended_at"], row["model"], row["reason"]) == (10.0, 50.0, "a@1", "")
    told = [event["what"] for event in store.events.of("job", id)]
    assert told == ["submitted", "starting", "running", "queued", "starting", "succeeded"]


def test_an_event_that_repeats_the_last_one_is_said_once(store: Store) -> None:
    for why in ("no room", "no room", "gone", "no room"):
        store.events.add(1.0, "service", "s", "start_failed", why)
    assert [event["why"] for event in store.events.of("service", "s")] == ["no room", "gone", "no room"]


def test_jobs_are_found_by_id_then_by_name(store: Store) -> None:
    ids = [submit(store, name="a"), submit(store, name="a"), submit(store, name="a-1")]
    assert ids == ["a-1", "a-2", "a-1-1"]
    assert [store.jobs.find(ref)["id"] for ref in ("a", "a-1", "a-1-1")] == ["a-2", "a-1", "a-1-1"]
    with pytest.raises(NotFoundError, match="no job `b`"):
        store.jobs.find("b")


def test_an_id_whose_directory_holds_work_is_not_given_again(store: Store, tmp_path: Path) -> None:
    (tmp_path / "jobs/a-1/attempts/1").mkdir(parents=True)  # of a database that was moved away
    (tmp_path / "jobs/a-2").mkdir()
    (tmp_path / "jobs/a-2/spec.json").write_text("{}")  # of a submission that was never acknowledged
    assert submit(store) == "a-2"


def test_threads_get_ids_of_their_own(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda i: submit(store, f"key-{i}"), range(40)))
    assert sorted(ids) == sorted(f"a-{i}" for i in range(1, 41))


def test_one_key_is_one_job(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: submit(store, "k"), range(16))) == {"a-1"}
    assert len(store.jobs.all()) == 1
    with pytest.raises(ConflictError, match=r"`k` stands for job a-1, whose spec is another"):
        submit(store, "k", steps=8)


def test_two_processes_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    """The control module that is replaced may still be dying."""
    commands = [[sys.executable, "-c", SUBMITTER, str(tmp_path), name] for name in "xy"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    ids: list[str] = []
    for process in processes:
        assert process.stdout is not None
        ids += [process.stdout.readline().split()[1] for _ in range(10)]
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert len(set(ids)) == 20


def test_unfinished_come_in_the_order_they_were_submitted(world: World) -> None:
    for name in ("c", "a", "b"):
        world.cluster.advance(world.cluster.now + 1)
        world.control.submit_job(world.spec(name))
    assert [job.id for job in world.store.jobs.unfinished()] == ["c-1", "a-1", "b-1"]
    assert [job["id"] for job in world.control.list_jobs()] == ["b-1", "a-1", "c-1"]
