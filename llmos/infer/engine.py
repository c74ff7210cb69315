"""What every inference engine does, whatever is inside."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from llmos.infer.request import GenerationRequest, TokenEvent


class Engine(Protocol):
    """Answers many requests at once. Its methods may be called from any event loop."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """The answer, as it is made; the last event has a ``finish_reason``.

        Whoever closes the iterator, or is cancelled in it, aborts the request. Raises UsageError for a request that
        cannot be right, ContextLengthError for a prompt that does not fit, CapacityError when the queue is full,
        all before the first event; EngineError when the engine fails, at any time.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End a request now and free what it holds; its iterator ends. Nothing happens if there is none."""
        ...

    def stats(self) -> dict[str, Any]:
        """Numbers for operators, JSON-able: ``healthy``, ``error``, ``running``, ``waiting``, limits and totals."""
        ...
