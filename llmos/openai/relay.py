"""Answers across a process boundary: errors travel as values, since remote calls would wrap them in their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from llmos.errors import LlmosError


async def pack(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes | LlmosError, None]:
    """For the side that answers: an error becomes the last item."""
    async with aclosing(pieces):
        try:
            async for piece in pieces:
                yield piece
        except LlmosError as error:
            yield error


async def unpack(items: AsyncIterator[bytes | LlmosError]) -> AsyncGenerator[bytes, None]:
    """For the side that asked: the pieces again, or the error raised."""
    async for item in items:
        if isinstance(item, LlmosError):
            raise item
        yield item
