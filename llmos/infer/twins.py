"""Requests with one prompt: the first reads it, and the others wait until they find it in the prefix cache.

So the n answers of a request, or many clients with the same question, read their prompt once.
"""

from __future__ import annotations

from llmos.infer.messages import CoreRequest

SHORTEST = 32
"""Tokens of a prompt that is worth waiting for: shorter ones are read in the step in which the first is."""

_Prompt = tuple[str, int, tuple[int, ...]]


class Twins:
    """Who reads which prompt, and who waits for it. Tenants and priorities do not mix."""

    def __init__(self) -> None:
        self._readers: dict[_Prompt, str] = {}
        self._waiting: dict[str, tuple[_Prompt, list[CoreRequest]]] = {}  # by the reader's id

    def hold(self, request: CoreRequest) -> bool:
        """Whether ``request`` has to wait; if not, others wait for it."""
        if len(request.prompt) < SHORTEST:
            return False
        prompt = request.tenant, request.priority, request.prompt
        reader = self._readers.setdefault(prompt, request.id)
        self._waiting.setdefault(reader, (prompt, []))[1].extend([request] if reader != request.id else [])
        return reader != request.id

    def release(self, id: str) -> list[CoreRequest]:
        """Those who waited for ``id``, which has read its prompt, or never will."""
        prompt, waiting = self._waiting.pop(id, (None, []))
        if prompt is not None:
            del self._readers[prompt]
        return waiting
