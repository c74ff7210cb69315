"""Requests that are held while nobody can answer them: a service is at zero replicas, or its only one is replaced."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from llmos.errors import LlmosError, UnavailableError
from llmos.front.fleet import Fleet
from llmos.front.relay import Relay
from llmos.front.turns import Question
from llmos.front.waiting import PATIENCE_S, WaitingRoom, progress


class Holding:
    """The answers of ``relay``, for which a request may have to wait; and how many have arrived and wait."""

    def __init__(self, fleet: Fleet, relay: Relay, room: WaitingRoom | None = None) -> None:
        self._fleet, self._relay = fleet, relay
        self._room = room or WaitingRoom()
        self._arrived: Counter[str] = Counter()
        self._asking: asyncio.Task[None] | None = None

    def asked(self) -> dict[str, tuple[int, int]]:
        """By service: how many requests have arrived so far, and how many are held now."""
        held = self._room.held()
        return {name: (self._arrived[name], held.get(name, 0)) for name in self._fleet.services}

    def look(self) -> None:
        """Let in those whose service can answer by now, and give up what nothing is to be expected of. To be called
        about twice a second."""
        for service in self._room.held():
            self._room.admit(service, self._fleet.answering(service))
        self._relay.look()

    async def pieces(self, question: Question) -> AsyncGenerator[bytes, None]:
        """As :meth:`Relay.pieces`. While nobody can answer and somebody is starting, the request waits, and a stream is
        told that it does."""
        service, waits_until_s = question.service, math.inf
        self._arrives(service)
        while True:
            begun = False
            try:
                async with aclosing(self._relay.pieces(question)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except UnavailableError:
                if begun or not self._may_wait(service, waits_until_s):
                    raise
            waits_until_s = min(waits_until_s, time.monotonic() + PATIENCE_S)
            async with aclosing(self._room.wait(service, self._tell)) as turns:
                async for waited_s in turns:
                    if question.streamed:
                        yield progress(service, waited_s)

    async def whole(self, question: Question) -> bytes:
        """All of the answer to a question that is not streamed, for which it may have to wait, too."""
        service, waits_until_s = question.service, math.inf
        self._arrives(service)
        while True:
            try:
                return await self._relay.whole(question)
            except UnavailableError:
                if not self._may_wait(service, waits_until_s):
                    raise
            waits_until_s = min(waits_until_s, time.monotonic() + PATIENCE_S)
            async with aclosing(self._room.wait(service, self._tell)) as turns:
                [waited_s async for waited_s in turns]

    def _arrives(self, service: str) -> None:
        if service in self._fleet.services:
            self._arrived[service] += 1

    def _may_wait(self, service: str, until_s: float) -> bool:
        route = self._fleet.services.get(service)
        return route is not None and route.holds and time.monotonic() <= until_s

    def _tell(self) -> None:
        """Somebody waits: the control module is to know at once."""

        async def refresh() -> None:
            with suppress(LlmosError, TimeoutError):  # it is asked again in a moment
                await self._fleet.refresh()

        self._asking = asyncio.create_task(refresh())
