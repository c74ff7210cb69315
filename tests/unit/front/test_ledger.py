from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmos.front import ledger as module
from llmos.front.ledger import Ledger
from llmos.usage import FRONT_DOOR, Record


def record(number: int) -> Record:
    return Record(f"req_{number}", "k", "t", "s", "m@1", 10, 4, number, 200, 1.7e9, FRONT_DOOR)


def emptied(ledger: Ledger) -> list[str]:
    """The ids of everything that it gives, as to a store that takes all."""
    ids = []
    while records := ledger.take():
        ids += [one.id for one in records]
        ledger.forget(records)
    return ids


def ids(*numbers: int) -> list[str]:
    return [record(number).id for number in numbers]


def test_what_is_added_is_given_until_it_is_taken(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "usage")
    assert ledger.take() == []
    for number in range(3):
        ledger.add(record(number))
    first = ledger.take()
    ledger.add(record(3))
    assert ledger.take() == first == [record(0), record(1), record(2)]
    ledger.sync()
    assert emptied(ledger) == ids(0, 1, 2, 3)
    assert [path.stat().st_size for path in (tmp_path / "usage").iterdir()] == [0]


def test_batches_are_bounded_and_come_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    ledger = Ledger(tmp_path)
    for number in range(10):
        ledger.add(record(number))
    assert len(ledger.take()) == 4
    assert emptied(ledger) == ids(*range(10))


def test_the_next_process_takes_over_what_a_dead_one_left_and_nothing_of_a_living_one(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    first.add(record(1))
    child = os.fork()
    if not child:  # the descriptors of `first` are shared with its parent, so they keep its locks
        dead = Ledger(tmp_path)
        dead.add(record(2))
        os.write(dead._open._descriptor, record(3).line()[:-9])  # killed while it wrote: nobody was told
        os._exit(0)
    os.waitpid(child, 0)
    second = Ledger(tmp_path)
    second.add(record(4))
    assert emptied(second) == ids(2, 4)
    assert emptied(first) == ids(1)


def test_a_line_that_cannot_be_read_is_told_and_the_others_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = tmp_path / "0001-1.jsonl"
    left.write_bytes(record(1).line() + b'{"id": "x"}\n[]\n' + record(2).line()[:-2] + b',"of_a_newer_version":1}\n')
    assert emptied(Ledger(tmp_path)) == ids(1, 2)
    assert "is no record of usage, and is not counted" in caplog.text


def test_with_a_full_disk_records_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(record(1))
    honest = os.write
    with monkeypatch.context() as full:
        full.setattr(module.os, "write", lambda file, line: honest(file, line[:20]))
        ledger.add(record(2))
        ledger.add(record(3))
    ledger.add(record(4))  # there is room again
    assert sorted(emptied(ledger)) == ids(1, 2, 3, 4)
