"""Replicas that do as they are told, each on a port of its own, and a front door before them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from fastapi import Request

from llmos.errors import ForbiddenError
from llmos.front.caller import authorizer
from llmos.front.door import FrontDoor, ServiceBackend
from llmos.front.fleet import Fleet, News
from llmos.front.holding import Holding
from llmos.front.ledger import Ledger
from llmos.front.listening import Drain, Server, listen
from llmos.front.metering import Metering
from llmos.front.metrics import FrontMetrics
from llmos.front.relay import Relay
from llmos.front.replica import create_replica_app
from llmos.front.waiting import WaitingRoom
from llmos.heartbeat import Heartbeat, Route
from llmos.openai.caller import Caller
from llmos.openai.replies import ModelCard, model_card
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.server import create_app

SECRET = b"a secret of this test"
BODY = {"model": "m", "prompt": "x"}
HANG = object()
"""In a script: say nothing more."""


class Replica:
    """Answers with its ``script``: bytes, errors, HANG. Counts who asked, and whose generator was closed."""

    def __init__(self, name: str, script: Iterable[object]) -> None:
        self.name, self.script = name, list(script)
        self.callers: list[Caller] = []
        self.prompts: list[object] = []
        self.arrivals: list[float] = []  # when each was asked, as `time.monotonic` has it
        self.closed, self.hanging = threading.Event(), threading.Event()
        self.drain = Drain(create_replica_app(self, authorizer(SECRET)))
        listener = listen("127.0.0.1")
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = Server(self.drain, listener)

    @property
    def beat(self) -> Heartbeat:
        return Heartbeat("m", "1", self.name, self.url, model="m@1")

    async def models(self) -> Sequence[ModelCard]:
        return [model_card("m", 7)]

    async def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        self.loop = asyncio.get_running_loop()
        self.arrivals.append(time.monotonic())
        self.callers.append(caller)
        self.prompts.append(request.model_dump(exclude_unset=True))
        try:
            for item in self.script:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, bytes):
                    yield item
                else:
                    self.hanging.set()
                    await asyncio.Event().wait()
        finally:
            self.closed.set()

    def cut(self) -> None:
        """Break every connection, and listen no more: what is seen of a process that is killed. Once it was asked."""
        self.loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for server in self.server.servers:
            server.close()
        for connection in list(self.server.server_state.connections):
            transport = connection.transport  # type: ignore[union-attr]
            assert transport is not None
            transport.abort()


@contextmanager
def replicas(*scripts: Iterable[object]) -> Iterator[list[Replica]]:
    """One for each of ``scripts``, named ``r0``, ``r1`` …"""
    made = [Replica(f"r{index}", script) for index, script in enumerate(scripts)]
    for one in made:
        one.server.start()
    try:
        yield made
    finally:
        for one in made:
            one.server.end()


@dataclass
class Door:
    """A front door in this event loop, and a client of it. ``now`` is its fleet's time in seconds.

    It knows the replicas of ``beats`` whenever it asks, and has ``told`` what is asked of services.
    """

    fleet: Fleet
    relay: Relay
    client: httpx.AsyncClient
    url: str
    held: Holding
    metering: Metering
    beats: list[Heartbeat]
    now: list[float] = field(default_factory=lambda: [0.0])
    told: list[dict[str, tuple[int, int]]] = field(default_factory=list)


@asynccontextmanager
async def door(
    *beats: Heartbeat,
    services: Sequence[str] = ("m",),
    routes: Mapping[str, Route] | None = None,
    limits: Mapping[str, int] | None = None,
) -> AsyncIterator[Door]:
    """A front door on a port of its own that knows replicas by ``beats``. ``limits`` are those of its one key."""
    now, there, told = [0.0], list(beats), list[dict[str, tuple[int, int]]]()
    key = {"id": "key-1", "tenant": "tenant-1", "limits": limits or {}, "tenant_limits": {}}

    async def read() -> News:
        told.append(held.asked())
        return News(routes or dict.fromkeys(services, Route(7)), list(there))

    async def authorize(request: Request, _scope: str) -> Caller:
        metering.knows(key)
        return Caller("key-1", "tenant-1", request.headers.get("x-request-id", "req"))

    async def remove(_service: str, _authorization: str | None) -> None:
        raise ForbiddenError("not here")

    fleet = Fleet(read, lambda: now[0])
    relay = Relay(fleet, SECRET)
    held = Holding(fleet, relay, WaitingRoom(every_s=0.05))
    await fleet.refresh()
    usage = TemporaryDirectory()
    ledger = Ledger(Path(usage.name))
    metering = Metering(ledger, FrontMetrics(fleet.beats), lambda service: fleet.services[service].limits)
    app = create_app(ServiceBackend(fleet, held, metering, remove), authorize)
    listener = listen("127.0.0.1")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = Server(FrontDoor(app, app, app, metering), listener)
    task = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            yield Door(fleet, relay, client, url, held, metering, there, now, told)
    finally:
        server.should_exit = True
        await task
        await relay.close()
        usage.cleanup()
