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
    now[0] = FORGET_S - 1
    table.heard(a)
    assert table.all() == [a, b] and not table.complete
    now[0] = FORGET_S + 0.1
    assert table.all() == [a] and table.complete
    table.left("a")
    assert table.all() == []
