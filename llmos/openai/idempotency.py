"""Idempotency keys: whoever repeats a request because its answer got lost gets the first answer, and pays once.

Answers are kept in this process's memory only, for a while, and within bounds: a key that is forgotten is a new one.
A request that fails, or whose client leaves, frees its key.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from llmos.errors import ConflictError, UsageError

HEADER, REPLAYED = "Idempotency-Key", "idempotent-replayed"
MAX_KEY_CHARS = 255
KEEP_S = 3600.0
MAX_ANSWERS, MAX_BYTES, MAX_ANSWER_BYTES = 4096, 64 * 2**20, 4 * 2**20

Place = tuple[str, str]


@dataclass(slots=True)
class _Entry:
    digest: bytes
    until_s: float
    answer: bytes


class Replays:
    """Answers by (who asks, idempotency key)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._bytes = clock, 0
        self._open: dict[Place, bytes] = {}  # digests of requests that are being answered, as long as that takes
        self._entries: OrderedDict[Place, _Entry] = OrderedDict()  # oldest first

    def begin(self, caller: str, key: str, path: str, body: bytes) -> bytes | None:
        """The answer to the request of before, or None: then :meth:`keep` or :meth:`forget` must follow.

        Raises UsageError for what is no key, ConflictError when the key stood for another request, or is being
        answered at this moment.
        """
        if not (key.isprintable() and 0 < len(key) <= MAX_KEY_CHARS):
            what = f"the header {HEADER} is not 1 to {MAX_KEY_CHARS} printable characters"
            raise UsageError(what, hint="Use a UUID.", param=HEADER)
        self._forget_old()
        digest, place = hashlib.sha256(path.encode() + b"\0" + body).digest(), (caller, key)
        entry = self._entries.get(place)
        if (before := entry.digest if entry else self._open.get(place)) is None:
            self._open[place] = digest
            return None
        if before != digest:
            what = f"the idempotency key `{key[:50]}` was used for another request: expected the same body"
            raise ConflictError(what, hint="Use a new key for a new request.", param=HEADER)
        if entry is None:
            what = f"the request with the idempotency key `{key[:50]}` is being answered"
            raise ConflictError(what, hint="Ask again when it is complete.", param=HEADER)
        return entry.answer

    def keep(self, caller: str, key: str, answer: bytes) -> None:
        """The request has its ``answer``, all of it."""
        digest = self._open.pop((caller, key))
        if len(answer) <= MAX_ANSWER_BYTES:
            self._entries[caller, key] = _Entry(digest, self._clock() + KEEP_S, answer)
            self._bytes += len(answer)
            while len(self._entries) > MAX_ANSWERS or self._bytes > MAX_BYTES:
                self._forget_oldest()

    def forget(self, caller: str, key: str) -> None:
        """The request has no answer: the key may be used again."""
        self._open.pop((caller, key), None)

    def _forget_old(self) -> None:
        while self._entries and next(iter(self._entries.values())).until_s < self._clock():
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, entry = self._entries.popitem(last=False)
        self._bytes -= len(entry.answer)
