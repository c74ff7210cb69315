"""Which processes are asked for to stand by, and when."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from llmos.control.standbys import BYTES, FOR_ATTEMPTS, MEMORY_PART, QUIET_S, Standbys, room
from llmos.core.types import Node, Resources
from llmos.standby import KEPT_S

GIB = 2**30


@dataclass
class Nodes:
    """Remembers what it was asked for, as (node, whether for ranks, how many)."""

    asked: list[tuple[str, bool, int]] = field(default_factory=list)

    def ask(self, node: str, rank: bool, count: int) -> None:
        self.asked.append((node, rank, count))

    def take(self) -> list[tuple[str, bool, int]]:
        asked, self.asked = self.asked, []
        return asked


def node(id: str, cpus: float = 2, gpus: float = 0, memory: int = 64 * GIB, **fields: bool) -> Node:
    return Node(id, Resources(cpus, gpus, memory), **fields)


HEAD, BIG = node("head"), node("big", 8)


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


def ready(nodes: Nodes, *there: Node, most: int = 8) -> Standbys:
    """Standbys of a cluster that has been quiet for long enough, and what was asked for is forgotten."""
    one = Standbys(nodes.ask, "head", most)
    one.look(0.0, there)
    assert not nodes.take(), "it has just begun: something may be about to start"
    one.look(QUIET_S, there)
    return one


def test_one_for_each_core_and_two_for_attempts_on_the_head(nodes: Nodes) -> None:
    one = ready(nodes, HEAD, BIG)
    assert nodes.take() == [("head", True, 2), ("big", True, 8), ("head", False, FOR_ATTEMPTS)]
    one.look(QUIET_S + 1, (HEAD, BIG))
    assert not nodes.take()


def test_what_an_attempt_takes_is_replaced_once_it_is_quiet_again(nodes: Nodes) -> None:
    one = ready(nodes, HEAD, BIG)
    nodes.take()
    one.started(100.0, ["big", "big", "head"], plain=True)
    one.look(100.0 + QUIET_S - 1, (HEAD, BIG))
    assert not nodes.take()
    one.look(100.0 + QUIET_S, (HEAD, BIG))
    assert nodes.take() == [("head", True, 1), ("big", True, 2), ("head", False, FOR_ATTEMPTS)]


def test_ranks_with_an_environment_of_their_own_take_none(nodes: Nodes) -> None:
    one = ready(nodes, HEAD)
    nodes.take()
    one.started(100.0, ["head", "head"], plain=False)
    one.look(200.0, (HEAD,))
    assert nodes.take() == [("head", False, FOR_ATTEMPTS)]


def test_they_are_replaced_when_their_time_is_over(nodes: Nodes) -> None:
    one = ready(nodes, HEAD)
    nodes.take()
    one.look(QUIET_S + KEPT_S - 1, (HEAD,))
    assert not nodes.take()
    one.look(QUIET_S + KEPT_S, (HEAD,))
    assert nodes.take() == [("head", True, 2), ("head", False, FOR_ATTEMPTS)]


def test_a_node_that_comes_gets_its_own_once_and_one_that_leaves_none(nodes: Nodes) -> None:
    one = ready(nodes, HEAD)
    nodes.take()
    one.look(200.0, (HEAD, BIG))
    assert nodes.take() == [("big", True, 8)]
    for there in ((HEAD,), (HEAD, BIG), (HEAD, node("leaving", draining=True))):  # it was not seen for a moment
        one.look(201.0, there)
        assert not nodes.take()


def test_where_there_are_gpus_nodes_without_get_none_for_ranks(nodes: Nodes) -> None:
    ready(nodes, HEAD, node("gpus", 96, 8))
    assert nodes.take() == [("gpus", True, 8), ("head", False, FOR_ATTEMPTS)]


@pytest.mark.parametrize(
    ("one", "on_gpus", "ranks"),
    [
        (node("cores", cpus=4), False, 4),
        (node("part of a core", cpus=0.5), False, 0),
        (node("gpus", cpus=96, gpus=8), True, 8),
        (node("no gpus", cpus=96), True, 0),
        (node("small", cpus=8, memory=int(2.5 * BYTES / MEMORY_PART)), False, 2),
    ],
)
def test_there_is_room_for_as_many_as_there_are_ranks(one: Node, on_gpus: bool, ranks: int) -> None:
    assert room(one, on_gpus) == ranks


def test_there_can_be_fewer_or_none(nodes: Nodes) -> None:
    ready(nodes, HEAD, BIG, most=3)
    assert nodes.take() == [("head", True, 2), ("big", True, 3), ("head", False, FOR_ATTEMPTS)]
    ready(nodes, HEAD, BIG, most=0)
    assert not nodes.take()
