"""Answers of an engine that are made at the same time, as one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from llmos.infer.request import TokenEvent

Indexed = tuple[int, TokenEvent]


async def together(streams: Sequence[AsyncIterator[TokenEvent]]) -> AsyncGenerator[Indexed, None]:
    """Events of all ``streams`` with their index, as they come. The first error ends all of them."""
    queue: asyncio.Queue[Indexed | Exception | None] = asyncio.Queue(maxsize=1)  # events merge while they wait
    tasks = [asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _pump(index: int, stream: Any, queue: asyncio.Queue[Indexed | Exception | None]) -> None:
    try:
        async with aclosing(stream):
            async for event in stream:
                await queue.put((index, event))
        await queue.put(None)
    except Exception as error:
        await queue.put(error)
