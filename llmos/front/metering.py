"""Every request to a service: let in by its limits, measured while it is answered, counted when it is over.

A request's record is in the ledger before the end of its answer is passed on. When the end does not come – the client
leaves, or the replica is gone – what is known here is a guess: the replica's own word counts, if it gives one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from llmos.errors import CapacityError, EngineError, LlmosError, RateLimitError, UsageError
from llmos.front.estimates import Estimates
from llmos.front.holding import Holding
from llmos.front.ledger import Ledger
from llmos.front.limits import Admission, Limiter, Limits, Party, parties
from llmos.front.metrics import FrontMetrics
from llmos.front.turns import Question
from llmos.front.usage import of_answer, taken_out
from llmos.heartbeat import Heartbeat
from llmos.openai.caller import Caller
from llmos.usage import CLIENT_GONE, FRONT_DOOR, GUESSED, Record, Tokens

MAX_KEYS = 16_384
"""Of so many it is remembered what their limits are; those of others are read again with each request."""
SYNC_S = 0.05
SEND_S = 1.0
_EVENT_END = b"\n\n"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Current:
    """Of the request that a task answers: whose limits it meets, and once it was let in, what it may take."""

    parties: list[Party] | None = None
    admission: Admission | None = None


_CURRENT: ContextVar[_Current] = ContextVar("current")


@dataclass(slots=True)
class Asked:
    """A request for ``service``: ``answers`` of at most ``bound`` tokens each, if that is given. ``model`` is what
    answers it (``name@version``), once that is known."""

    service: str
    caller: Caller
    body_bytes: int
    streamed: bool
    bound: int | None = None
    answers: int = 1
    model: str = ""

    def answered_by(self, replica: Heartbeat) -> None:
        """``replica`` has begun."""
        self.model = replica.model


class Metering:
    """Limits, usage and metrics of one front door, in one event loop.

    ``limits`` are those of a service, by its name, as :class:`Limits` has them. Times of ``clock`` are in seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        metrics: FrontMetrics,
        limits: Callable[[str], Mapping[str, int]],
        limiter: Limiter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger, self.metrics, self.clock = ledger, metrics, clock
        self.limiter = limiter or Limiter()
        self.estimates = Estimates()
        self._limits = limits
        self._keys: OrderedDict[str, tuple[Mapping[str, Any], list[Party]]] = OrderedDict()

    def arrives(self) -> None:
        """The current task begins with a request, of which nobody knows whose it is, and which nobody has let in."""
        _CURRENT.set(_Current())

    def knows(self, key: Mapping[str, Any]) -> None:
        """It is asked with ``key``, the control module's answer to ``authorize``."""
        known = self._keys.get(key["id"])
        if known is None or known[0] is not key:
            known = self._keys[key["id"]] = key, parties(key)
            if len(self._keys) > MAX_KEYS:
                self._keys.popitem(last=False)
        _current().parties = known[1]

    async def metered(self, asked: Asked, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """``pieces`` of the answer without what only the front door is told.

        Raises RateLimitError and CapacityError before anybody is asked, and what ``pieces`` raises.
        """
        run = _Run(self, asked, self._admit(asked))
        try:
            async for piece in pieces:
                if shown := run.heard(piece):
                    yield shown
            run.ended(EngineError.http_status if asked.streamed else 200)  # a stream that is complete was counted
        except Exception as error:
            run.ended(error.http_status if isinstance(error, LlmosError) else LlmosError.http_status)
            raise
        finally:
            run.ended(CLIENT_GONE)
            await pieces.aclose()

    async def whole(self, asked: Asked, replicas: Holding, question: Question) -> bytes:
        """As :meth:`metered`, the answer of ``replicas`` to a ``question`` that is not streamed."""
        run = _Run(self, asked, self._admit(asked))
        try:
            answer = run.heard(await replicas.whole(question))
            run.ended(200)
            return answer
        except Exception as error:
            run.ended(error.http_status if isinstance(error, LlmosError) else LlmosError.http_status)
            raise
        finally:
            run.ended(CLIENT_GONE)

    def headers(self) -> dict[str, str]:
        """``x-ratelimit-*`` of the request that the current task answers, if it was let in."""
        admission = _current().admission
        return admission.headers(self.clock()) if admission else {}

    def _admit(self, asked: Asked) -> Admission:
        size = self.estimates.size(asked.service, asked.body_bytes, asked.bound, asked.answers)
        current = _current()
        try:
            admission = self.limiter.admit(self._parties(asked, current), size, self.clock())
        except (CapacityError, UsageError) as error:
            limit = error.limit if isinstance(error, RateLimitError) else "front_door"
            reached = limit if isinstance(error, CapacityError) else ""
            self.metrics.refused(asked.service, asked.caller.tenant, error.http_status, reached)
            raise
        current.admission = admission
        return admission

    def _parties(self, asked: Asked, current: _Current) -> list[Party]:
        found, limits = current.parties, self._limits(asked.service)
        if found is None:  # what was known of the key before
            _, found = self._keys.get(asked.caller.key, (None, []))
        return [*found, Party("service", asked.service, Limits(**limits))] if limits else found


def _current() -> _Current:
    """Of the current task; a new one where no request has arrived."""
    found = _CURRENT.get(None)
    if found is None:
        _CURRENT.set(found := _Current())
    return found


class _Run:
    """A request that was let in."""

    def __init__(self, metering: Metering, asked: Asked, admission: Admission) -> None:
        self._metering, self._asked, self.admission = metering, asked, admission
        self._began_s = metering.clock()
        self._first_s: float | None = None
        self._events = 0
        self._over = False
        metering.metrics.began(asked.service, asked.caller.tenant)

    def heard(self, piece: bytes) -> bytes:
        """A piece of the answer, and what of it is for the client. With the last one, the request is counted."""
        if not self._asked.streamed:
            told = of_answer(piece)
        else:
            piece, told = taken_out(piece)
            if piece and not piece.startswith(b":"):  # a comment says that the request waits
                self._events += piece.count(_EVENT_END)
                if self._first_s is None:
                    self._first_s = self._metering.clock()
        if told is not None:
            self._count(told, 200, FRONT_DOOR)
        return piece

    def ended(self, status: int) -> None:
        """It is over, and nobody has said what it used. After it was counted, this changes nothing."""
        if not self._over and self._events:
            prompt = self._metering.estimates.prompt(self._asked.service, self._asked.body_bytes)
            self._count(Tokens(prompt, 0, self._events), status, GUESSED)
        elif not self._over:
            self._close(status, self.admission.expected if status == CLIENT_GONE else 0)

    def _count(self, tokens: Tokens, status: int, witness: int) -> None:
        asked, caller = self._asked, self._asked.caller
        record = Record(
            *(caller.request_id, caller.key, caller.tenant, asked.service, asked.model, *tokens, status, time.time()),
            witness=witness,
        )
        self._metering.ledger.add(record)
        self._close(status, tokens.total, tokens if witness == FRONT_DOOR else None)

    def _close(self, status: int, total: int, tokens: Tokens | None = None) -> None:
        self._over = True
        metering, asked, now = self._metering, self._asked, self._metering.clock()
        self.admission.settle(total, now)
        metering.metrics.ended(asked.service, asked.caller.tenant, status, tokens)
        if tokens is None:
            return
        metering.estimates.learn(asked.service, asked.body_bytes, asked.bound, asked.answers, tokens)
        if asked.streamed and self._first_s is not None:
            times = self._first_s - self._began_s, now - self._first_s
            metering.metrics.streamed(asked.service, asked.caller.tenant, *times, tokens.completion)


async def deliver(ledger: Ledger, send: Callable[[list[Record]], Awaitable[None]]) -> None:
    """Have ``send`` tell the control module what the ledger holds, for ever, and sync it many times a second."""
    await asyncio.gather(_sync(ledger), _send(ledger, send))


async def _sync(ledger: Ledger) -> None:
    while True:
        await asyncio.sleep(SYNC_S)
        try:
            await asyncio.to_thread(ledger.sync)
        except OSError as error:
            _log.error("usage cannot be made durable: %s", error)


async def _send(ledger: Ledger, send: Callable[[list[Record]], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(SEND_S)
        try:
            while records := ledger.take():
                await send(records)
                ledger.forget(records)
        except LlmosError as error:
            _log.info("usage is kept until the control module takes it: %s", error.message)
        except Exception:
            _log.exception("usage could not be sent; it is tried again")
