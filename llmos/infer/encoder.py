"""The engine for encoders: event loops ask and listen here, the core computes behind a link, as for decoders."""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmos.errors import CapacityError, ConflictError, ContextLengthError, EngineError, LlmosError, UsageError
from llmos.infer.encoder_messages import EmbedRequest, Encoded, EncodeRequest, Text, Vectors
from llmos.infer.encoder_options import EncoderOptions
from llmos.infer.link import REOPEN, Link, ProcessLink, ThreadLink
from llmos.infer.messages import Report
from llmos.models.encoder_config import EncoderConfig
from llmos.models.encoder_tokenizer import EncoderTokenizer

MAX_QUEUE_TOKENS = 2**20
"""Of the requests that run and wait, unless there is only one."""

News = Vectors | LlmosError


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """A request of ``tokens`` and its listener, who waits for ``answer`` in ``loop``; ``id`` is for the core."""

    id: str
    request: EmbedRequest
    tokens: int
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[News]
    started_s: float = field(default_factory=time.monotonic)


class EncoderEngine:
    """Makes vectors with the encoder in ``model_dir``; ``options`` are the fields of :class:`EncoderOptions`.

    Up to ``max_batch`` and ``max_queue`` more requests, of ``max_queue_tokens`` in all, may be there at once, others
    are refused; one that is alone may be larger. With ``process``, the model has a process of its own, which is best
    for serving; else a thread. Raises ModelError for a directory that holds no encoder, UsageError for wrong arguments.
    Its methods may be called from any event loop. Call :meth:`close` at the end.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        process: bool = False,
        max_queue: int = 128,
        max_queue_tokens: int = MAX_QUEUE_TOKENS,
        **options: Any,
    ) -> None:
        chosen = EncoderOptions(model_dir, **options)
        self.config, self.tokenizer = EncoderConfig.load(model_dir), EncoderTokenizer.load(model_dir)
        self._max_batch, self._max_queue = chosen.max_batch, max_queue
        self._max_queue_tokens, self._tokens = max_queue_tokens, 0
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._tickets: dict[str, _Ticket] = {}  # by the core's id
        self._asked: dict[str, _Ticket] = {}  # by the caller's
        self._error: EngineError | None = None
        self._request_s = 0.1
        self._totals = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._link: Link = (ProcessLink if process else ThreadLink)(chosen, self)
        ready = self._link.ready()
        self.context_length, self._vocab_size = ready.context_length, ready.vocab_size
        self._core = ready.stats

    async def embed(self, request: EmbedRequest) -> Vectors:
        """The vector of each text, [N, D]. Whoever is cancelled in it, or leaves it, cancels the request.

        Raises UsageError for a request that cannot be right, ContextLengthError for a text that is too long,
        CapacityError when the queue is full, DeadlineError, and EngineError when the engine fails.
        """
        ticket = self._submit(request)
        try:
            found = await ticket.answer
        finally:
            if self._settle(ticket):
                self._link.send(ticket.id)
        if isinstance(found, LlmosError):
            raise copy.copy(found)  # it may be raised for others too
        return found

    async def abort(self, request_id: str) -> None:
        """End a request now, with EngineError. Nothing happens if there is none."""
        with self._lock:
            ticket = self._asked.get(request_id)
        if ticket is not None and self._settle(ticket):
            self._link.send(ticket.id)
            _publish([(ticket, EngineError(f"request `{request_id}` was aborted", hint="Send it again."))])

    def stats(self) -> dict[str, Any]:
        """Numbers for operators, JSON-able: ``healthy``, ``error``, ``running``, ``waiting``, limits and totals."""
        with self._lock:
            running = min(len(self._tickets), self._max_batch)
            return {
                **self._core,
                "healthy": self._error is None,
                "error": str(self._error) if self._error else None,
                "running": running,
                "waiting": len(self._tickets) - running,
                "max_batch": self._max_batch,
                "max_queue": self._max_queue,
                "max_queue_tokens": self._max_queue_tokens,
                "context_length": self.context_length,
                **self._totals,
            }

    def close(self) -> None:
        """End every request with EngineError, and the core. Waits for the batch in progress."""
        with self._lock:
            self._error = self._error or EngineError("the engine is closed", hint=REOPEN)
        self._link.close()

    def on_report(self, report: Report[Encoded]) -> None:
        """Called by the link: pass on what is complete."""
        news: list[tuple[_Ticket, News]] = []
        for outcome in report.outcomes:
            ticket = self._tickets.get(outcome.id)
            if ticket is not None and self._settle(ticket):
                found = outcome.vectors_ND if outcome.error is None else outcome.error
                assert found is not None
                news.append((ticket, found))
        self._core = report.stats
        _publish(news)

    def on_end(self, error: EngineError) -> None:
        """Called by the link: tell everyone."""
        with self._lock:
            self._error = error = self._error or error
            tickets = list(self._tickets.values())
        _publish([(ticket, error) for ticket in tickets if self._settle(ticket)])

    def _submit(self, request: EmbedRequest) -> _Ticket:
        self._check(request.texts)
        loop, now = asyncio.get_running_loop(), time.monotonic()
        tokens = sum(map(len, request.texts))
        ticket = _Ticket(str(next(self._ids)), request, tokens, loop, loop.create_future())
        deadline = None if request.deadline_s is None else now + request.deadline_s
        who = request.tenant, request.user, request.priority, request.weight
        with self._lock:
            if self._error is not None:
                raise copy.copy(self._error)
            if request.id in self._asked:
                raise ConflictError(f"request `{request.id}` is already running: expected an id of its own")
            if len(self._tickets) >= self._max_batch + self._max_queue:
                raise self._full()
            if self._tickets and self._tokens + tokens > self._max_queue_tokens:
                raise self._full(f", with {self._tokens} tokens: expected at most {self._max_queue_tokens} with yours")
            self._tokens += tokens
            self._tickets[ticket.id] = self._asked[request.id] = ticket
            self._link.send(EncodeRequest(ticket.id, request.texts, now, *who, deadline))
        return ticket

    def _check(self, texts: tuple[Text, ...]) -> None:
        if not texts:
            raise UsageError("there is no text: expected at least one", param="input")
        for number, text in enumerate(texts):
            where = f"input {number}" if len(texts) > 1 else "the input"
            if not text:
                raise UsageError(f"{where} is empty: expected at least one token", param="input")
            if len(text) > self.context_length:
                hint = "Shorten it, split it, or ask for `truncate`, which leaves its end out."
                what = f"{where} has {len(text)} tokens: expected at most {self.context_length}"
                raise ContextLengthError(what, hint=hint, param="input")
            if not (min(text) >= 0 and max(text) < self._vocab_size):
                found = min(text) if min(text) < 0 else max(text)
                what = f"token {found} of {where} is not one: expected 0 to {self._vocab_size - 1}"
                raise UsageError(what, hint="Send text, or tokens of this model's own tokenizer.", param="input")

    def _full(self, why: str = ", as many as may") -> CapacityError:
        wait_s = max(1, math.ceil(self._request_s))
        what = f"{len(self._tickets)} requests are running or waiting{why}"
        return CapacityError(what, hint=f"Ask again in {wait_s} s.", retry_after_s=wait_s)

    def _settle(self, ticket: _Ticket) -> bool:
        """Count ``ticket`` and forget it; False if that was done before."""
        with self._lock:
            if self._tickets.pop(ticket.id, None) is None:
                return False
            del self._asked[ticket.request.id]
            self._tokens -= ticket.tokens
            self._totals["requests"] += 1
            self._totals["prompt_tokens"] += ticket.tokens
            self._request_s += 0.1 * (time.monotonic() - ticket.started_s - self._request_s)
        return True


def _publish(news: Iterable[tuple[_Ticket, News]]) -> None:
    """Hand out what happened, in one call per event loop. Loops that are closed have nobody who listens."""
    by_loop = defaultdict(list)
    for ticket, one in news:
        by_loop[ticket.loop].append((ticket.answer, one))
    for loop, batch in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_deliver, batch)


def _deliver(batch: list[tuple[asyncio.Future[News], News]]) -> None:
    for answer, one in batch:
        if not answer.done():  # whoever waited may have left
            answer.set_result(one)
