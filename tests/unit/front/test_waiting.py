"""Requests that wait until somebody can answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from llmos.errors import CapacityError, UnavailableError
from llmos.front.waiting import HERD, WaitingRoom
from llmos.heartbeat import Heartbeat, Route
from tests.unit.front.world import BODY, Door, door, replicas

ANSWER = b'{"object": "text_completion"}'


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not happened():
            await asyncio.sleep(0.01)


async def waited(room: WaitingRoom, told: list[float] | None = None) -> str:
    async with aclosing(room.wait("m")) as turns:
        async for waited_s in turns:
            if told is not None:
                told.append(waited_s)
    return "in"


async def test_they_go_in_by_turns_and_so_many_at_once() -> None:
    room = WaitingRoom(every_s=0.01)
    waiting = [asyncio.create_task(waited(room)) for _ in range(2 * HERD + 1)]
    await asyncio.sleep(0.05)
    assert room.held() == {"m": 2 * HERD + 1}
    room.admit("m", 1)
    await asyncio.sleep(0.05)
    assert [task.done() for task in waiting] == [True] * HERD + [False] * (HERD + 1)
    room.admit("m", 2)
    assert await asyncio.gather(*waiting) == ["in"] * len(waiting) and room.held() == {}
    room.admit("m", 1)  # nobody waits


async def test_who_waits_is_told_so_and_not_for_ever() -> None:
    now = [0.0]
    room, told = WaitingRoom(patience_s=60, every_s=0.01, clock=lambda: now[0]), list[float]()
    task = asyncio.create_task(waited(room, told))
    await until(lambda: bool(told))
    now[0] = 61.0
    with pytest.raises(UnavailableError, match="`m` has not started in 60 s") as found:
        await task
    assert found.value.retry_after_s > 1 and room.held() == {}


async def test_no_more_wait_than_there_is_room_for_and_who_leaves_makes_room() -> None:
    room = WaitingRoom(most=2, every_s=0.01)
    first, second = (asyncio.create_task(waited(room)) for _ in range(2))
    await asyncio.sleep(0.05)
    with pytest.raises(CapacityError, match="2 requests wait for `m`"):
        await waited(room)
    first.cancel()
    await asyncio.wait([first])
    assert room.held() == {"m": 1}
    third = asyncio.create_task(waited(room))
    await asyncio.sleep(0.05)
    room.admit("m", 1)
    assert await asyncio.gather(second, third) == ["in", "in"]


async def _asleep(at: Door, ask: Callable[[], Awaitable[object]]) -> asyncio.Task[object]:
    """A request to a service at zero, which waits."""
    at.told.clear()
    task = asyncio.ensure_future(ask())
    await until(lambda: any(asked["m"][1] for asked in at.told))
    return task  # type: ignore[return-value]


async def test_a_request_to_a_service_at_zero_waits_for_its_first_replica() -> None:
    with replicas([ANSWER]) as (one,):
        async with door(routes={"m": Route(holds=True)}) as at:
            task = await _asleep(at, lambda: at.client.post("/v1/completions", json=BODY))
            assert at.told[-1] == {"m": (1, 1)}  # the control module knows at once
            at.beats[:] = [one.beat]
            await at.fleet.refresh()
            at.held.look()
            response = await task
            assert response.content == ANSWER  # type: ignore[attr-defined]
            assert at.held.asked() == {"m": (1, 0)}


async def test_a_stream_is_told_that_it_waits() -> None:
    events = [b'data: {"n": 1}\n\n', b"data: [DONE]\n\n"]
    with replicas(events) as (one,):
        async with door(routes={"m": Route(holds=True)}) as at:
            body = BODY | {"stream": True}
            async with at.client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.aiter_lines()
                comment = await anext(lines)
                assert response.status_code == 200 and comment.startswith(": ")
                assert json.loads(comment[2:])["waiting_for"] == "m"
                at.beats[:] = [one.beat]
                await at.fleet.refresh()
                at.held.look()
                rest = [line async for line in lines if line.startswith("data")]
                assert rest == ['data: {"n": 1}', "data: [DONE]"]


async def test_one_that_is_replaced_without_room_for_both_is_waited_for() -> None:
    with replicas([ANSWER], [ANSWER]) as (old, new):
        async with door(old.beat, routes={"m": Route(holds=True)}) as at:
            old.drain.closing = True
            task = await _asleep(at, lambda: at.client.post("/v1/completions", json=BODY))
            at.beats[:] = [new.beat]
            await at.fleet.refresh()
            at.held.look()
            assert (await task).content == ANSWER  # type: ignore[attr-defined]
            assert not old.callers and len(new.callers) == 1


async def test_nobody_waits_for_a_service_that_nobody_starts() -> None:
    async with door(routes={"m": Route()}) as at:
        response = await at.client.post("/v1/completions", json=BODY)
        assert response.status_code == 503 and "Retry-After" in response.headers


async def test_revisions_get_their_shares_and_a_session_stays_with_one() -> None:
    beats = [Heartbeat("m", revision, f"r{revision}", "http://127.0.0.1:1") for revision in ("1", "2", "3")]
    async with door(*beats, routes={"m": Route(aliases=("mm",), weights={"1": 0.75, "2": 0.25})}) as at:
        drawn = [at.fleet.fit("m", set())[0].revision for _ in range(2000)]
        assert "3" not in drawn and 0.7 < drawn.count("1") / 2000 < 0.8
        for session in ("a", "b", "c", "d"):
            assert len({at.fleet.fit("m", set(), session)[0].revision for _ in range(20)}) == 1
        assert at.fleet.fit("m", {"r1"})[0].revision == "2"
        assert at.fleet.fit("m", {"r1", "r2"})[0].revision == "3"  # better than nobody
        cards = (await at.client.get("/v1/models")).json()["data"]
        assert [card["id"] for card in cards] == ["m", "mm"]


async def test_an_alias_is_another_name_of_a_service() -> None:
    with replicas([ANSWER]) as (one,):
        async with door(one.beat, routes={"m": Route(aliases=("mm",))}) as at:
            assert (await at.client.post("/v1/completions", json=BODY | {"model": "mm"})).content == ANSWER
            assert one.prompts[0]["model"] == "m"  # type: ignore[index]
