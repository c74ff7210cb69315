"""What the front door believes of replicas, by what it is told and what it sees."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos.errors import NotFoundError, UnavailableError
from llmos.front.fleet import SILENCE_S, SUSPECT_S, Fleet, LeastBusy, News
from llmos.heartbeat import Heartbeat, Route

A, B = (Heartbeat("m", "1", name, f"http://127.0.0.1:{port}") for name, port in (("a", 1), ("b", 2)))
SERVICES = {"m": Route(7)}


class World:
    def __init__(self) -> None:
        self.now, self.router = 0.0, LeastBusy()
        self.fleet = Fleet(self._read, self.router, lambda: self.now)

    async def _read(self) -> News:
        raise AssertionError("nobody asks in these tests")

    def chosen(self, *tried: str) -> str:
        return self.fleet.choose("m", set(tried)).replica


@pytest.fixture
def world() -> World:
    made = World()
    made.fleet.learn(News(SERVICES, [A, B]))
    return made


def test_the_replica_with_the_fewest_requests_is_asked(world: World) -> None:
    world.router.begun("a", ())
    assert world.chosen() == "b"
    world.router.begun("b", ())
    world.router.begun("b", ())
    assert world.chosen() == "a"
    world.router.ended("b", ())
    world.router.ended("b", ())
    assert world.chosen() == "b"


def test_those_that_drain_stall_or_were_tried_get_nothing_new(world: World) -> None:
    world.fleet.learn(News(SERVICES, [replace(A, draining=True), B]))
    assert world.chosen() == "b"
    world.fleet.learn(News(SERVICES, [replace(A, stalled=True), B]))
    world.router.begun("b", ())
    assert world.chosen() == "b"
    assert world.chosen("b") == "a"  # better than nobody
    with pytest.raises(UnavailableError, match="lost 2 of its replicas"):
        world.chosen("a", "b")


def test_one_that_has_said_that_it_drains_is_asked_no_more(world: World) -> None:
    world.fleet.drained("a")
    assert world.chosen() == "b"
    with pytest.raises(UnavailableError):
        world.chosen("b")


def test_one_that_broke_off_is_let_alone_for_a_while(world: World) -> None:
    world.fleet.suspect("a")
    world.router.begun("b", ())
    assert world.chosen() == "b" and world.chosen("b") == "a"
    world.now += SUSPECT_S + 0.1
    assert world.chosen() == "a"


def test_services_without_replicas_are_unavailable_and_others_unknown(world: World) -> None:
    world.fleet.learn(News({"m": Route(7), "cold": Route(8)}, [A]))
    with pytest.raises(UnavailableError, match="no replica of `cold`") as found:
        world.fleet.choose("cold", set())
    assert found.value.retry_after_s >= 1
    with pytest.raises(NotFoundError, match="`other` is not served"):
        world.fleet.choose("other", set())
    with pytest.raises(UnavailableError, match="just started"):
        World().fleet.choose("m", set())


def test_a_control_module_that_has_just_started_makes_nobody_forgotten(world: World) -> None:
    world.fleet.learn(News(SERVICES, [], complete=False))
    assert world.chosen() == "a"
    world.fleet.learn(News(SERVICES, [B], complete=True))
    assert world.chosen() == "b"
    with pytest.raises(UnavailableError):
        world.chosen("b")


def test_who_is_dead_to_those_who_wait(world: World) -> None:
    assert not world.fleet.dead("a", SILENCE_S + 1)  # it says that it lives: a long prompt
    world.fleet.learn(News(SERVICES, [replace(A, stalled=True), B]))
    assert world.fleet.dead("a", 0.1)
    world.fleet.learn(News(SERVICES, [B]))
    assert not world.fleet.dead("a", SILENCE_S - 1)  # bytes may still come
    assert world.fleet.dead("a", SILENCE_S + 1)
