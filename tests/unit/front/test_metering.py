from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llmos.errors import ClusterError, EngineError, RateLimitError, UsageError
from llmos.front import metering as module
from llmos.front.ledger import Ledger
from llmos.front.limits import Limiter
from llmos.front.metering import Asked, Metering, deliver
from llmos.front.metrics import FrontMetrics
from llmos.front.usage import comment
from llmos.openai.caller import Caller
from llmos.openai.sse import DONE, encode, sse
from llmos.usage import CLIENT_GONE, FRONT_DOOR, GUESSED, Record, Tokens
from tests.unit.front.test_metrics import samples

CHUNK = sse({"choices": [{"text": "x"}]})
USED = Tokens(12, 8, 2)


class World:
    def __init__(self, directory: Path, **limits: int) -> None:
        self.now = 1000.0
        self.ledger, self.metrics = Ledger(directory), FrontMetrics()
        self.metering = Metering(self.ledger, self.metrics, lambda _: {}, Limiter(max_requests=3), lambda: self.now)
        self.metering.knows({"id": "k", "tenant": "t", "limits": limits, "tenant_limits": {}})

    def answer(self, *script: Any, streamed: bool = True, bound: int | None = None) -> AsyncGenerator[bytes, None]:
        """The metered answer of a replica that does what ``script`` says: bytes, errors, seconds that pass."""

        async def pieces() -> AsyncGenerator[bytes, None]:
            for item in script:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, bytes):
                    yield item
                elif isinstance(item, asyncio.Event):
                    await item.wait()
                else:
                    self.now += item

        return self.metering.metered(Asked("s", Caller("k", "t"), 100, streamed, bound, model="m@1"), pieces())

    def records(self) -> list[Record]:
        found = self.ledger.take()
        if found:
            self.ledger.forget(found)
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_stream_is_counted_before_its_end_is_passed_on(world: World) -> None:
    answer = world.answer(0.5, CHUNK, 2.0, CHUNK + comment(USED) + DONE)
    assert await anext(answer) == CHUNK and world.records() == []
    assert await anext(answer) == CHUNK + DONE
    (record,) = world.records()
    assert (record.key, record.tenant, record.service, record.model) == ("k", "t", "s", "m@1")
    assert (record.prompt, record.cached, record.completion, record.status) == (*USED, 200)
    assert record.witness == FRONT_DOOR and record.id.startswith("req_")
    assert [piece async for piece in answer] == [] and world.records() == []
    seen = samples(world.metrics)
    assert seen["llmos_time_to_first_token_seconds_sum"] == {("s", "t"): 0.5}
    assert seen["llmos_time_per_output_token_seconds_sum"] == {("s", "t"): 2.0}
    assert seen["llmos_model_running"] == {("s", "t"): 0}


async def test_a_whole_answer_is_counted(world: World) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8}}
    whole = encode({"choices": [], "usage": usage})
    assert [piece async for piece in world.answer(whole, streamed=False)] == [whole]
    assert [(one.prompt, one.cached, one.completion) for one in world.records()] == [USED]


async def test_what_ends_before_its_end_is_a_guess(world: World) -> None:
    answer = world.answer(CHUNK, CHUNK, 1.0)
    await anext(answer)
    await answer.aclose()  # the client leaves
    broken = world.answer(CHUNK, CHUNK + CHUNK, EngineError("gone"))
    with pytest.raises(EngineError):
        assert [piece async for piece in broken]
    left, lost = world.records()
    assert (left.status, left.completion, left.witness) == (CLIENT_GONE, 1, GUESSED)
    assert (lost.status, lost.completion, lost.witness) == (503, 3, GUESSED)
    with pytest.raises(UsageError):
        assert [piece async for piece in world.answer(UsageError("no"))]
    assert world.records() == []  # no replica began with it
    assert world.metering.limiter.requests == 0


async def test_limits_refuse_early_and_are_settled_with_the_truth(tmp_path: Path) -> None:
    world = World(tmp_path, requests_per_min=3, tokens_per_min=200)
    first = world.answer(CHUNK, comment(USED) + DONE, bound=150)
    await anext(first)
    with pytest.raises(RateLimitError, match="its limit is 200 tokens a minute"):
        await anext(world.answer(CHUNK, bound=150))
    assert [piece async for piece in first] == [DONE]
    second = world.answer(CHUNK, comment(USED) + DONE, bound=150)
    await anext(second)
    headers = world.metering.headers()
    assert headers["x-ratelimit-remaining-requests"] == "1" and headers["x-ratelimit-limit-tokens"] == "200"
    world.metering.arrives()
    assert world.metering.headers() == {}
    with pytest.raises(UsageError, match="asks for 201 tokens"):
        await anext(world.answer(CHUNK, bound=201))
    seen = samples(world.metrics)
    assert seen["llmos_model_refused_total"] == {("s", "t", "key_tokens"): 1}
    assert seen["llmos_model_requests_total"] == {("s", "t", "429"): 1, ("s", "t", "400"): 1, ("s", "t", "200"): 1}
    await second.aclose()


async def test_waiting_is_no_answer(world: World) -> None:
    waiting = world.answer(2.0, b': {"waiting_for": "s"}\n\n', 2.0, EngineError("gone"))
    with pytest.raises(EngineError):
        assert [piece async for piece in waiting] == [b': {"waiting_for": "s"}\n\n']
    assert world.records() == []
    assert len([piece async for piece in world.answer(b": waiting\n\n", 2.0, CHUNK + comment(USED) + DONE)]) == 2
    assert samples(world.metrics)["llmos_time_to_first_token_seconds_sum"] == {("s", "t"): 2.0}


async def test_whoever_leaves_early_has_taken_what_was_expected(tmp_path: Path) -> None:
    world = World(tmp_path, tokens_per_min=200)
    left = asyncio.ensure_future(anext(world.answer(asyncio.Event(), bound=150, streamed=False)))
    await asyncio.sleep(0)
    left.cancel()
    with suppress(asyncio.CancelledError):
        await left
    assert world.metering.limiter.requests == 0
    with pytest.raises(RateLimitError):
        await anext(world.answer(CHUNK, bound=150))


async def test_what_is_not_bounded_is_expected_to_be_as_before(tmp_path: Path) -> None:
    world = World(tmp_path, tokens_per_min=100_000)
    for _ in range(200):
        async for _piece in world.answer(CHUNK, comment(Tokens(50, 0, 10)) + DONE):
            continue
    size = world.metering.estimates.size("s", 100, None, 2)
    assert size.tokens == 70 and size.least == 0
    assert world.metering.estimates.size("s", 100, 500, 2).least == 1000


async def test_records_are_sent_until_they_are_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_S", 0.01)
    monkeypatch.setattr(module, "SYNC_S", 0.005)
    sent: list[str] = []
    trouble: list[Exception] = [ClusterError("away"), RuntimeError("what?")]

    async def send(records: list[Record]) -> None:
        if trouble:
            raise trouble.pop()
        sent.extend(one.id for one in records)

    task = asyncio.create_task(deliver(world.ledger, send))
    for _ in range(3):
        assert [piece async for piece in world.answer(comment(USED) + DONE)] == [DONE]
    while len(sent) < 3:
        await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert len(set(sent)) == 3 and not world.ledger._open._unsynced and world.records() == []
