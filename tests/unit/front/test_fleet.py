"""What the front door believes of replicas, by what it is told and what it sees."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from llmos.errors import ClusterError, NotFoundError, UnavailableError
from llmos.front import fleet
from llmos.front.fleet import SILENCE_S, SUSPECT_S, Fleet, News
from llmos.heartbeat import Heartbeat, Route

A, B = (Heartbeat("m", "1", name, f"http://127.0.0.1:{port}") for name, port in (("a", 1), ("b", 2)))
SERVICES = {"m": Route(7)}


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.fleet = Fleet(self._read, lambda: self.now)

    async def _read(self) -> News:
        raise AssertionError("nobody asks in these tests")

    def fit(self, *tried: str) -> str:
        return "".join(one.replica for one in self.fleet.fit("m", set(tried)))


@pytest.fixture
def world() -> World:
    made = World()
    made.fleet.learn(News(SERVICES, [A, B]))
    return made


def test_those_that_drain_stall_or_were_tried_get_nothing_new(world: World) -> None:
    world.fleet.learn(News(SERVICES, [replace(A, draining=True), B]))
    assert world.fit() == "b"
    world.fleet.learn(News(SERVICES, [replace(A, stalled=True), B]))
    assert world.fit() == "b"
    assert world.fit("b") == "a"  # better than nobody
    with pytest.raises(UnavailableError, match="lost 2 of its replicas"):
        world.fit("a", "b")


def test_one_that_has_said_that_it_drains_is_asked_no_more(world: World) -> None:
    world.fleet.drained("a")
    assert world.fit() == "b"
    with pytest.raises(UnavailableError):
        world.fit("b")


def test_one_that_broke_off_is_let_alone_for_a_while(world: World) -> None:
    world.fleet.suspect("a")
    assert world.fit() == "b" and world.fit("b") == "a"
    world.now += SUSPECT_S + 0.1
    assert world.fit() == "ab"


def test_services_without_replicas_are_unavailable_and_others_unknown(world: World) -> None:
    world.fleet.learn(News({"m": Route(7), "cold": Route(8)}, [A]))
    with pytest.raises(UnavailableError, match="no replica of `cold`") as found:
        world.fleet.fit("cold", set())
    assert found.value.retry_after_s >= 1
    with pytest.raises(NotFoundError, match="`other` is not served"):
        world.fleet.fit("other", set())
    with pytest.raises(UnavailableError, match="just started"):
        World().fleet.fit("m", set())


def test_a_control_module_that_has_just_started_makes_nobody_forgotten(world: World) -> None:
    world.fleet.learn(News(SERVICES, [], complete=False))
    assert world.fit() == "ab"
    world.fleet.learn(News(SERVICES, [B], complete=True))
    assert world.fit() == "b"
    with pytest.raises(UnavailableError):
        world.fit("b")


def test_who_is_dead_to_those_who_wait(world: World) -> None:
    assert not world.fleet.dead("a", SILENCE_S + 1)  # it says that it lives: a long prompt
    world.fleet.learn(News(SERVICES, [replace(A, stalled=True), B]))
    assert world.fleet.dead("a", 0.1)
    world.fleet.learn(News(SERVICES, [B]))
    assert not world.fleet.dead("a", SILENCE_S - 1)  # bytes may still come
    assert world.fleet.dead("a", SILENCE_S + 1)


def test_that_a_replica_lives_is_believed_as_long_as_somebody_says_so(world: World) -> None:
    assert not world.fleet.dead("a", SILENCE_S + 1)
    world.now += SILENCE_S + 1  # the control module is away for so long
    assert world.fleet.dead("a", SILENCE_S + 1) and not world.fleet.dead("a", SILENCE_S - 1)


async def test_who_hangs_is_looked_for_while_the_control_module_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read() -> News:
        raise ClusterError("away")

    monkeypatch.setattr(fleet, "REFRESH_S", 0.0)
    looked = asyncio.Event()
    task = asyncio.create_task(Fleet(read).follow(looked.set))
    await asyncio.wait_for(looked.wait(), 5)
    task.cancel()


@pytest.mark.parametrize("error", [ValueError("what Ray wraps a bug in"), OSError("no socket"), ClusterError("away")])
async def test_whatever_goes_wrong_in_the_control_module_nobody_gets_a_500(error: Exception) -> None:
    async def read() -> News:
        raise error

    one = Fleet(read)
    with pytest.raises(UnavailableError, match="just started"):
        await one.find("m", set())
    one.learn(News(SERVICES, [A]))
    assert [found.replica for found in await one.find("m", set())] == ["a"]
    with pytest.raises(NotFoundError):
        await one.find("other", set())
    with pytest.raises(ClusterError):
        await one.refresh()
