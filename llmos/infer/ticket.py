"""The way from a link's thread to the event loop of whoever asked."""

from __future__ import annotations

import asyncio
import copy
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable

from llmos.errors import LlmosError
from llmos.infer.answer import Answer
from llmos.infer.request import TokenEvent

News = TokenEvent | LlmosError | None
"""What a request comes to: more tokens, an error, or (None) its abortion."""


class Ticket:
    """A request and its listener; ``id`` is what the core calls it. Made and read in an event loop."""

    def __init__(self, id: str, answer: Answer) -> None:
        self.id, self.answer = id, answer
        self.started_s = time.monotonic()
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

    def _take(self, news: News) -> None:
        if isinstance(news, TokenEvent):
            self._event = news if self._event is None else self._event.then(news)
        else:
            self._over, self._error = True, news
        self._news.set()


def publish(news: Iterable[tuple[Ticket, News]]) -> list[Ticket]:
    """Hand out what happened, in one call per event loop, however many requests it has.

    Returns the tickets of loops that are closed, and with them everyone who listened.
    """
    by_loop = defaultdict(list)
    for ticket, one in news:
        by_loop[ticket._loop].append((ticket, one))
    deaf: list[Ticket] = []
    for loop, batch in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver, batch)
        except RuntimeError:
            deaf += [ticket for ticket, _ in batch]
    return deaf


def _deliver(batch: list[tuple[Ticket, News]]) -> None:
    for ticket, one in batch:
        ticket._take(one)
