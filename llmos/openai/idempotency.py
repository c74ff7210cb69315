"""Idempotency keys: whoever repeats a request because its answer got lost gets the first answer, and pays once.

An idempotency key belongs to the API key that it came with. Answers are kept in this process's memory only, for a
while, and within bounds; when there are too many, the API key that has most loses its oldest, so that nobody makes
another's be forgotten. A key that is forgotten is a new one, as all are to a process that has just started: see
docs/limits.md. A request that fails, or whose client leaves, frees its key.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from llmos.errors import ConflictError, UsageError

HEADER, REPLAYED = "Idempotency-Key", "idempotent-replayed"
MAX_KEY_CHARS = 255
KEEP_S = 3600.0
MAX_ANSWERS, MAX_BYTES, MAX_ANSWER_BYTES = 4096, 64 * 2**20, 4 * 2**20
"""Of all API keys together; an answer that is larger is not kept."""
_SWEEP_S = 60.0


@dataclass(slots=True)
class _Entry:
    digest: bytes
    until_s: float
    answer: bytes


@dataclass(slots=True)
class _Shelf:
    """What is kept for one API key: ``open`` are digests of requests that are being answered, as long as that takes."""

    open: dict[str, bytes] = field(default_factory=dict)
    entries: OrderedDict[str, _Entry] = field(default_factory=OrderedDict)  # oldest first
    size: int = 0  # bytes

    def forget_oldest(self) -> int:
        """How many bytes that was."""
        _, entry = self.entries.popitem(last=False)
        self.size -= len(entry.answer)
        return len(entry.answer)


class Replays:
    """Answers by who asks and their idempotency keys."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._swept_s = clock, clock()
        self._answers = self._bytes = 0
        self._shelves: dict[str, _Shelf] = {}

    def begin(self, caller: str, key: str, path: str, body: bytes) -> bytes | None:
        """The answer to the request of before, or None: then :meth:`keep` or :meth:`forget` must follow.

        Raises UsageError for what is no key, ConflictError when the key stood for another request, or is being
        answered at this moment.
        """
        if not (key.isprintable() and 0 < len(key) <= MAX_KEY_CHARS):
            what = f"the header {HEADER} is not 1 to {MAX_KEY_CHARS} printable characters"
            raise UsageError(what, hint="Use a UUID.", param=HEADER)
        self._forget_old(caller)
        digest = hashlib.sha256(path.encode() + b"\0" + body).digest()
        shelf = self._shelves.setdefault(caller, _Shelf())
        entry = shelf.entries.get(key)
        if (before := entry.digest if entry else shelf.open.get(key)) is None:
            shelf.open[key] = digest
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
        shelf = self._shelves[caller]
        digest = shelf.open.pop(key)
        if len(answer) <= MAX_ANSWER_BYTES:
            shelf.entries[key] = _Entry(digest, self._clock() + KEEP_S, answer)
            shelf.size += len(answer)
            self._bytes += len(answer)
            self._answers += 1
            while self._answers > MAX_ANSWERS:
                self._drop(max(self._shelves.values(), key=lambda one: len(one.entries)))
            while self._bytes > MAX_BYTES:
                self._drop(max(self._shelves.values(), key=lambda one: one.size))
        self._tidy(caller, shelf)

    def forget(self, caller: str, key: str) -> None:
        """The request has no answer: the key may be used again."""
        if shelf := self._shelves.get(caller):
            shelf.open.pop(key, None)
            self._tidy(caller, shelf)

    def _forget_old(self, caller: str) -> None:
        """What is out of date of ``caller``, and now and then of all."""
        now, callers = self._clock(), [caller]
        if now - self._swept_s >= _SWEEP_S:
            self._swept_s, callers = now, list(self._shelves)
        for one in callers:
            if shelf := self._shelves.get(one):
                while shelf.entries and next(iter(shelf.entries.values())).until_s < now:
                    self._drop(shelf)
                self._tidy(one, shelf)

    def _drop(self, shelf: _Shelf) -> None:
        self._bytes -= shelf.forget_oldest()
        self._answers -= 1

    def _tidy(self, caller: str, shelf: _Shelf) -> None:
        if not (shelf.open or shelf.entries):
            self._shelves.pop(caller, None)
