"""The way from the engine's thread to the event loop of whoever asked."""

from __future__ import annotations

import asyncio
import copy
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable

from llmos.errors import LlmosError
from llmos.infer.request import TokenEvent
from llmos.infer.sequence import Sequence

Outcome = TokenEvent | LlmosError | None
"""What a request comes to: more tokens, an error, or (None) its abortion."""


class Ticket:
    """A request in the engine and its listener. Made and read in an event loop; the engine's thread calls `publish`."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.id = sequence.request.id
        self.started = 0.0
        self.gone = False
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._event: TokenEvent | None = None
        self._over = False
        self._error: LlmosError | None = None

    async def events(self) -> AsyncIterator[TokenEvent]:
        """What comes, until it is over. Who reads slowly gets fewer, longer events."""
        while True:
            await self._news.wait()
            self._news.clear()
            event, self._event = self._event, None
            if event is not None:
                yield event
                if event.finish_reason:
                    return
            if self._error is not None:
                raise copy.copy(self._error)  # it may be raised for others too
            if self._over:
                return

    def _take(self, outcome: Outcome) -> None:
        if isinstance(outcome, TokenEvent):
            self._event = outcome if self._event is None else self._event.then(outcome)
        else:
            self._over, self._error = True, outcome
        self._news.set()


def publish(outcomes: Iterable[tuple[Ticket, Outcome]]) -> None:
    """Hand out what happened, in one call per event loop, however many requests it has."""
    by_loop = defaultdict(list)
    for ticket, outcome in outcomes:
        by_loop[ticket._loop].append((ticket, outcome))
    for loop, batch in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver, batch)
        except RuntimeError:  # the loop is closed, and with it everyone who listened
            for ticket, _ in batch:
                ticket.gone = True


def _deliver(batch: list[tuple[Ticket, Outcome]]) -> None:
    for ticket, outcome in batch:
        ticket._take(outcome)
