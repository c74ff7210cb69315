"""Clients that leave while a real engine decodes for them: it stops within a second, and nothing of them is left."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psutil
import pytest

from llmos.front.caller import authorizer
from llmos.front.listening import Drain, Server, listen
from llmos.front.replica import create_replica_app
from llmos.front.witness import Witness
from llmos.heartbeat import Heartbeat
from llmos.infer.local import LocalEngine
from llmos.serving import EngineBackend
from tests.unit.front.world import SECRET, Door, door
from tests.unit.infer.small import CONTEXT, write_model

ROUNDS, LEAVING, STAYING = 6, 6, 3
STOP_S = 1.0
LONG: dict[str, Any] = {"model": "m", "prompt": "class Walk", "max_tokens": CONTEXT - 20, "ignore_eos": True}


class Real:
    """A replica of a small real engine: its server, its relay's other end, without Ray."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine, self.witness = engine, Witness("m", "m@1")
        backend = EngineBackend(engine, engine.tokenizer, "m", witness=self.witness)
        listener = listen("127.0.0.1")
        self.beat = Heartbeat("m", "1", "r0", f"http://127.0.0.1:{listener.getsockname()[1]}", model="m@1")
        self.drain = Drain(create_replica_app(backend, authorizer(SECRET)))
        self.server = Server(self.drain, listener, beside=self._stay)

    async def _stay(self) -> None:
        self.loop = asyncio.get_running_loop()
        await asyncio.Event().wait()

    @property
    def open(self) -> int:
        stats = self.engine.stats()
        return int(stats["running"] + stats["waiting"])

    async def tasks(self) -> int:
        async def count() -> int:
            return len(asyncio.all_tasks())

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(count(), self.loop))


@pytest.fixture
def real(tmp_path: Any) -> Iterator[Real]:
    engine = LocalEngine(write_model(tmp_path), dtype="float32", max_batch=8, max_queue=32, runner="torch", threads=1)
    one = Real(engine)
    one.server.start()
    yield one
    one.server.end()
    engine.close()


async def until(true: Callable[[], bool], limit_s: float = 20.0) -> float:
    """Seconds until ``true``."""
    began_s = time.monotonic()
    while not true():
        assert time.monotonic() - began_s < limit_s, "it never was"
        await asyncio.sleep(0.005)
    return time.monotonic() - began_s


def more(statuses: list[int], than: int) -> bool:
    return len(statuses) > than


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose connections end with a request, all of them with it: one that stays would keep the connection of
    a request that was cancelled while it connected."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        yield client


@asynccontextmanager
async def asking(url: str, at_once: int) -> AsyncIterator[list[int]]:
    """So many clients that ask again and again, and stay. Yields the statuses of their answers."""
    statuses: list[int] = []

    async def ask(client: httpx.AsyncClient) -> None:
        while True:
            found = await client.post("/v1/completions", json={**LONG, "max_tokens": 16})
            statuses.append(found.status_code)

    async with client_of(url) as client:
        tasks = [asyncio.create_task(ask(client)) for _ in range(at_once)]
        yield statuses
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def leave(url: str, stream: bool, after_s: float) -> None:
    """Ask for a long answer, and go in the middle of it or before it begins."""

    async def ask(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/v1/completions", json={**LONG, "stream": stream}) as response:
            async for _ in response.aiter_raw():
                continue

    async with client_of(url) as client:
        task = asyncio.create_task(ask(client))
        await asyncio.wait([task], timeout=after_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def left_behind(one: Door, real: Real) -> dict[str, int]:
    """What there is of tasks, sockets but for those kept for the next request, blocks in use and requests."""
    one.relay._connections.close()
    stats = real.engine.stats()
    sockets = [one for one in psutil.Process().net_connections("tcp") if one.status != psutil.CONN_LISTEN]
    return {
        "tasks of the front door": len(asyncio.all_tasks()),
        "tasks of the replica": await real.tasks(),
        "sockets": len(sockets),
        "blocks": int(stats["blocks"] - stats["blocks_free"]),
        "requests": real.open + real.drain.running + one.metering.limiter.requests,
    }


async def settled(measure: Callable[[], Awaitable[dict[str, int]]], before: dict[str, int]) -> dict[str, int]:
    """What is left once it is no more than ``before``, or after a while."""
    for _ in range(100):
        found = await measure()
        if all(found[name] <= before[name] for name in before):
            break
        await asyncio.sleep(0.02)
    return found


async def test_who_leaves_leaves_nothing_behind(real: Real) -> None:
    drawn, stops = random.Random(7), list[float]()
    async with door(real.beat) as one:
        async with client_of(one.url) as client:
            assert (await client.post("/v1/completions", json={**LONG, "max_tokens": 4})).status_code == 200
        nothing = {**await left_behind(one, real), "sockets": 0, "blocks": 0, "requests": 0}
        before = await settled(lambda: left_behind(one, real), nothing)
        assert before == nothing
        for turn in range(ROUNDS):
            async with asking(one.url, STAYING) as statuses:
                leaving = [leave(one.url, bool(n % 2), drawn.uniform(0.0, 0.15)) for n in range(LEAVING)]
                await asyncio.gather(*leaving)
                stops.append(await until(lambda: real.open <= STAYING))
                await until(functools.partial(more, statuses, len(statuses)))  # others are served as before
            assert set(statuses) == {200}
            await until(lambda: not real.open)
            assert await settled(lambda: left_behind(one, real), before) == before, f"round {turn}"
    print(f"decoding for who had left stopped after {1e3 * max(stops):.0f} ms at most, in {ROUNDS} rounds")
    assert max(stops) < STOP_S
