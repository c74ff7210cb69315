"""Which replicas the control module believes to be there."""

from __future__ import annotations

from llmos.control.replica_table import ReplicaTable
from llmos.heartbeat import FORGET_S, Heartbeat


def test_who_speaks_is_there_and_who_is_silent_is_forgotten() -> None:
    now = [0.0]
    table = ReplicaTable(lambda: now[0])
    a, b = (Heartbeat("m", "1", name, "http://127.0.0.1:1") for name in "ab")
    assert table.all() == [] and not table.complete
    table.heard(b)
    now[0] = FORGET_S / 3
    assert table.all() == [b]
    now[0] = FORGET_S - 1.2
    table.heard(a)
    assert table.all() == [a, b] and not table.complete
    now[0] = FORGET_S + 0.1
    assert table.all() == [a] and table.complete
    table.left("a")
    assert table.all() == []


def test_a_module_that_stood_still_does_not_take_everybody_for_silent() -> None:
    now = [0.0]
    table = ReplicaTable(lambda: now[0])
    beat = Heartbeat("m", "1", "a", "http://127.0.0.1:1")
    for _ in range(10):
        now[0] += 1
        table.heard(beat)
    assert table.all() == [beat] and table.complete
    now[0] += 2 * FORGET_S  # its process was stopped, and nobody could say anything
    assert table.all() == [] and not table.complete
    for _ in range(5):
        now[0] += 1
        table.heard(beat)
    assert table.all() == [beat] and table.complete
