"""The load: streams of requests over HTTP/1.1, every answer timed, by a process of its own.

It shares two cores with what it measures, so it looks at bytes as they come and parses none: an event ends with an
empty line, an answer with its length or with its last chunk. It reads a line of JSON for each load from stdin and
writes one line for what came of it; see :class:`Load` and :class:`Sample`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import uvloop

_HEAD_END, _EVENT_END, _LAST_CHUNK, _DONE = b"\r\n\r\n", b"\n\n", b"0\r\n\r\n", b"[DONE]"
_TAIL = 40
"""Bytes in which the end of a stream is looked for: ``data: [DONE]``, and what HTTP adds."""
_LATE_S = 60.0


class LoadError(Exception):
    """An answer was not what it must be."""


@dataclass(frozen=True, slots=True)
class Load:
    """``streams`` connections, each with its next request as soon as the last one is answered, for ``seconds``.

    ``events``: how many an answer must at least have; 0 for one that is no stream. ``once``: each stream asks once, and
    its answer counts however long it takes.
    """

    port: int
    path: str
    key: str
    body: dict[str, Any]
    streams: int
    seconds: float
    events: int = 0
    once: bool = False

    @property
    def request(self) -> bytes:
        """What is sent."""
        body = json.dumps(self.body).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(slots=True)
class Sample:
    """What came within ``seconds``: events, answers, and of each answer the seconds to its first and last event."""

    seconds: float
    events: int = 0
    answers: int = 0
    first_s: list[float] = field(default_factory=list)
    last_s: list[float] = field(default_factory=list)


class _Run:
    """One load while it runs."""

    def __init__(self, load: Load) -> None:
        self.load, self.request = load, load.request
        self.sample = Sample(load.seconds)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open = load.streams
        self._until = float("inf") if load.once else time.perf_counter() + load.seconds

    def over(self, asked: int) -> bool:
        """Whether a stream that has asked ``asked`` times is to stop."""
        return self.ended.done() or time.perf_counter() >= self._until or (self.load.once and asked > 0)

    def close(self) -> None:
        """A connection has nothing left to do."""
        self._open -= 1
        if not self._open and not self.ended.done():
            self.ended.set_result(None)

    def fail(self, what: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(LoadError(what))

    def count(self, events: int, now: float) -> None:
        if now < self._until:
            self.sample.events += events

    def answered(self, sent: float, first: float, now: float) -> None:
        if now < self._until:
            self.sample.answers += 1
            self.sample.first_s.append(first - sent)
            self.sample.last_s.append(now - sent)


class _Connection(asyncio.Protocol):
    """One stream of requests."""

    def __init__(self, run: _Run) -> None:
        self._run, self._asking, self._asked = run, False, 0
        self._head: bytes | None = b""
        self._left: int | None = None
        self._tail, self._events, self._sent, self._first = b"", 0, 0.0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def connection_lost(self, _error: Exception | None) -> None:
        if self._asking:
            self._run.fail(f"the connection was closed in an answer, after {self._events} events: {self._tail!r}")

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._head is not None:
            head, found, data = (self._head + data).partition(_HEAD_END)
            if not found:
                self._head = head
                return
            self._begin(head, data)
            if not data:
                return
        if self._left is not None:
            self._left -= len(data)
            self._first = self._first or now
            if self._left <= 0:
                self._end(now)
            return
        found_events = data.count(_EVENT_END) + (self._tail[-1:] == b"\n" == data[:1])
        if found_events:
            self._first = self._first or now
            self._events += found_events
            self._run.count(found_events, now)
        self._tail = (self._tail + data)[-_TAIL:] if len(data) < _TAIL else data[-_TAIL:]
        if self._tail.endswith(_LAST_CHUNK):
            self._end(now)

    def _ask(self) -> None:
        if self._run.over(self._asked):
            self._asking = False
            self._transport.close()
            self._run.close()
            return
        self._asking, self._head, self._left, self._tail, self._events, self._first = True, b"", None, b"", 0, 0.0
        self._asked += 1
        self._sent = time.perf_counter()
        self._transport.write(self._run.request)

    def _begin(self, head: bytes, body: bytes) -> None:
        self._head = None
        lines = head.lower().split(b"\r\n")
        lengths = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
        self._left = lengths[0] if lengths else None
        if b" 200 " not in lines[0] + b" ":
            self._run.fail(f"{lines[0].decode()}: {body[:400]!r}")

    def _end(self, now: float) -> None:
        if self._run.load.events and (self._events < self._run.load.events or _DONE not in self._tail):
            self._run.fail(f"expected {self._run.load.events} events and an end, found {self._events}: {self._tail!r}")
            return
        self._run.answered(self._sent, self._first, now)
        self._ask()


async def run(load: Load) -> Sample:
    """Raises LoadError for a wrong answer, TimeoutError for one that does not come."""
    loop, one = asyncio.get_running_loop(), _Run(load)
    connecting = [loop.create_connection(lambda: _Connection(one), "127.0.0.1", load.port) for _ in range(load.streams)]
    made = await asyncio.gather(*connecting)
    try:
        await asyncio.wait_for(one.ended, load.seconds + _LATE_S)
    finally:
        for transport, _ in made:
            transport.abort()
    return one.sample


def main() -> None:
    """Until stdin ends."""
    gc.disable()
    for line in sys.stdin:
        try:
            found: dict[str, Any] = asdict(uvloop.run(run(Load(**json.loads(line)))))
        except (LoadError, OSError, TimeoutError) as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
