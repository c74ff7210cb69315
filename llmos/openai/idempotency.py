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
    answer: bytes | None = None


class Replays:
    """Answers by (who asks, idempotency key)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._bytes = clock, 0
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
        if entry is None:
            self._entries[place] = _Entry(digest, self._clock() + KEEP_S)
            return None
        if entry.digest != digest:
            what = f"the idempotency key `{key[:50]}` was used for another request: expected the same body"
            raise ConflictError(what, hint="Use a new key for a new request.", param=HEADER)
        if entry.answer is None:
            what = f"the request with the idempotency key `{key[:50]}` is being answered"
            raise ConflictError(what, hint="Ask again when it is complete.", param=HEADER)
        return entry.answer

    def keep(self, caller: str, key: str, answer: bytes) -> None:
        """The request has its ``answer``, all of it."""
        entry = self._entries.get((caller, key))
        if len(answer) > MAX_ANSWER_BYTES:
            self.forget(caller, key)
        elif entry is not None:
            entry.answer = answer
            self._bytes += len(answer)
            self._make_room()

    def forget(self, caller: str, key: str) -> None:
        """The request has no answer: the key may be used again."""
        entry = self._entries.pop((caller, key), None)
        if entry is not None and entry.answer is not None:
            self._bytes -= len(entry.answer)

    def _forget_old(self) -> None:
        while self._entries and next(iter(self._entries.values())).until_s < self._clock():
            self.forget(*next(iter(self._entries)))

    def _make_room(self) -> None:
        while len(self._entries) > MAX_ANSWERS or self._bytes > MAX_BYTES:
            self.forget(*next(iter(self._entries)))
