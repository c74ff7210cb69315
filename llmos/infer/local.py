"""Our engine: event loops ask and listen here, tokens become text here; the core computes behind a link."""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from llmos.errors import CapacityError, ConflictError, ContextLengthError, EngineError, UsageError
from llmos.infer.answer import Answer
from llmos.infer.launch import Gang
from llmos.infer.link import REOPEN, Link, ProcessLink, ThreadLink
from llmos.infer.messages import CoreRequest, Outcome, Report, late
from llmos.infer.options import EngineOptions
from llmos.infer.request import GenerationRequest, TokenEvent
from llmos.infer.ticket import News, Ticket, publish
from llmos.infer.twins import Twins
from llmos.models import Tokenizer


class LocalEngine:
    """Generates with the model in ``model_dir``; ``options`` are the fields of :class:`EngineOptions`.

    Up to ``max_batch`` requests run at once; ``max_queue`` more may wait. When all these places are taken, a tenant
    with fewer of them than another gets one of the other's: the newest request that waits there is refused. With
    ``process``, the model has a process of its own, which is best for serving; else a thread. Ranks (``tp``, ``pp``)
    are processes of this machine, or those of ``gang``. Raises ModelError for a directory that holds no model,
    UsageError for wrong arguments, OutOfMemoryError. Call :meth:`close` at the end.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        process: bool = False,
        max_queue: int = 128,
        gang: Gang | None = None,
        **options: Any,
    ) -> None:
        chosen = EngineOptions(model_dir, host=gang.host if gang else None, **options)
        self._max_batch, self._max_queue = chosen.max_batch, max_queue
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._tickets: dict[str, Ticket] = {}  # by the core's id
        self._asked: dict[str, Ticket] = {}  # by the caller's
        self._twins, self._cached = Twins(), chosen.prefix_cache
        self._error: EngineError | None = None
        self._request_s = 1.0
        self._totals = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._link = self._connect(chosen, process, gang)
        try:
            self.tokenizer = Tokenizer.load(model_dir)
        except BaseException:
            self._link.close()
            raise
        ready = self._link.ready()
        self.context_length, self._vocab_size = ready.context_length, ready.vocab_size
        known = range(ready.vocab_size)  # a tokenizer may have more tokens than its model
        self._ends = frozenset(token for token in ready.ends | self.tokenizer.stop_ids if token in known)
        self._core = ready.stats

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """See :class:`llmos.infer.engine.Engine`."""
        ticket = self._submit(request)
        loop, limit_s = asyncio.get_running_loop(), request.deadline_s
        # Wherever the request is by then: the core does not know of all of them, and may be in a long step.
        timer = None if limit_s is None else loop.call_later(limit_s, self._expire, ticket)
        try:
            async for event in ticket.events():
                yield event
        finally:
            if timer is not None:
                timer.cancel()
            self._drop(ticket)

    async def abort(self, request_id: str) -> None:
        """See :class:`llmos.infer.engine.Engine`."""
        with self._lock:
            ticket = self._asked.get(request_id)
        if ticket is not None:
            self._drop(ticket)
            publish([(ticket, None)])

    def stats(self) -> dict[str, Any]:
        """See :class:`llmos.infer.engine.Engine`; with what the core says of itself (docs/engine.md)."""
        with self._lock:
            running, waiting = self._counts()
            return {
                **self._core,
                "healthy": self._error is None,
                "error": str(self._error) if self._error else None,
                "running": running,
                "waiting": waiting,
                "max_batch": self._max_batch,
                "max_queue": self._max_queue,
                "context_length": self.context_length,
                **self._totals,
            }

    def close(self) -> None:
        """End every request with EngineError, and the core. Waits for the step in progress."""
        with self._lock:
            self._error = self._error or EngineError("the engine is closed", hint=REOPEN)
        self._link.close()

    def on_report(self, report: Report[Outcome]) -> None:
        """Called by the link: make text of what a step brought, and pass it on."""
        news: list[tuple[Ticket, News]] = []
        for outcome in report.outcomes:
            ticket = self._tickets.get(outcome.id)
            if ticket is None:
                continue  # nobody listens any more
            if outcome.error is not None:
                news.append((ticket, outcome.error))
                self._settle(ticket)
                continue
            event = ticket.answer.take(outcome)
            news.append((ticket, event))
            if ticket.answer.count == len(event.token_ids):  # its prompt is in the cache
                with self._lock:
                    self._go_on(ticket, self._link.send)
            if event.finish_reason:
                self._settle(ticket)
                if outcome.reason is None:  # a stop string: the core knows nothing of it
                    self._link.send(outcome.id)
        self._core = report.stats
        for ticket in publish(news):
            self._drop(ticket)

    def on_end(self, error: EngineError) -> None:
        """Called by the link: tell everyone."""
        with self._lock:
            self._error = error = self._error or error
            tickets = list(self._tickets.values())
        for ticket in tickets:
            self._settle(ticket)
        publish([(ticket, error) for ticket in tickets])

    def _connect(self, options: EngineOptions, process: bool, gang: Gang | None) -> Link:
        """The way to the core, which another engine has another one of."""
        return (ProcessLink if process else ThreadLink)(options, self, gang)

    def _submit(self, request: GenerationRequest) -> Ticket:
        self._check(request.prompt_tokens)
        request.sampling.check_vocabulary(self._vocab_size)
        ticket = Ticket(str(next(self._ids)), Answer(request, self.tokenizer.stream(request.sampling.shown_tokens)))
        with self._lock:
            if self._error is not None:
                raise copy.copy(self._error)
            if request.id in self._asked:
                raise ConflictError(f"request `{request.id}` is already running: expected an id of its own")
            out = None
            if len(self._tickets) >= self._max_batch + self._max_queue and (out := self._least(request.tenant)) is None:
                raise self._full()
            self._tickets[ticket.id] = self._asked[request.id] = ticket
            self._send(self._for_core(ticket.id, request))
        if out is not None and self._drop(out):
            publish([(out, self._full())])
        return ticket

    def _least(self, tenant: str) -> Ticket | None:
        """Who gives its place to a request of ``tenant`` when all are taken: the newest without a token of the tenant
        that has most places, if that has at least two more."""
        places = Counter(ticket.answer.request.tenant for ticket in self._tickets.values())
        if not places:
            return None
        crowd, most = places.most_common(1)[0]
        if most < places[tenant] + 2:
            return None
        theirs = (ticket for ticket in reversed(self._tickets.values()) if ticket.answer.request.tenant == crowd)
        return next((ticket for ticket in theirs if not ticket.answer.count), None)

    def _for_core(self, id: str, request: GenerationRequest) -> CoreRequest:
        sampling, now = request.sampling, time.monotonic()
        room = self.context_length - len(request.prompt_tokens)
        return CoreRequest(
            id,
            request.prompt_tokens,
            sampling,
            seed=secrets.randbits(64) if sampling.seed is None else sampling.seed,
            limit=len(request.prompt_tokens) + min(room, sampling.max_tokens or room),
            ends=self._ends,
            arrived=now,
            tenant=request.tenant,
            user=request.user,
            priority=request.priority,
            weight=request.weight,
            deadline=None if request.deadline_s is None else now + request.deadline_s,
        )

    def _check(self, prompt: tuple[int, ...]) -> None:
        if not prompt:
            raise UsageError("the prompt is empty: expected at least one token", param="prompt")
        if len(prompt) >= self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, the context {self.context_length}: expected room for an answer",
                hint="Shorten the prompt, or use a model with a longer context.",
                param="prompt",
            )
        if not (min(prompt) >= 0 and max(prompt) < self._vocab_size):
            found = min(prompt) if min(prompt) < 0 else max(prompt)
            raise UsageError(f"token {found} is not one: expected 0 to {self._vocab_size - 1}", param="prompt")

    def _counts(self) -> tuple[int, int]:
        """How many run, by the core's last report, and how many wait."""
        running = min(self._core["running"], len(self._tickets))
        return running, len(self._tickets) - running

    def _full(self) -> CapacityError:
        running, waiting = self._counts()
        wait_s = max(1, math.ceil(self._request_s * waiting / self._max_batch))
        what = f"{running} requests are running and {waiting} waiting, as many as may"
        return CapacityError(what, hint=f"Ask again in {wait_s} s.", retry_after_s=wait_s)

    def _drop(self, ticket: Ticket) -> bool:
        """Nobody listens to ``ticket`` any more. False, and nothing happens, if it is settled."""
        if settled := self._settle(ticket):
            self._link.send(ticket.id)
        return settled

    def _expire(self, ticket: Ticket) -> None:
        """The deadline of ``ticket`` has come."""
        request, made = ticket.answer.request, ticket.answer.count
        room = self.context_length - len(request.prompt_tokens)
        if self._drop(ticket):
            publish([(ticket, late(made, min(room, request.sampling.max_tokens or room)))])

    def _send(self, asked: CoreRequest) -> None:
        """Now, or when somebody else has read its prompt."""
        if not (self._cached and self._twins.hold(asked)):
            self._link.send(asked)

    def _go_on(self, ticket: Ticket, send: Callable[[CoreRequest], None]) -> None:
        """Send those who waited for ``ticket`` and are still wanted."""
        for asked in self._twins.release(ticket.id):
            if asked.id in self._tickets:
                send(asked)

    def _settle(self, ticket: Ticket) -> bool:
        """Count ``ticket`` and forget it; False if that was done before."""
        with self._lock:
            if self._tickets.pop(ticket.id, None) is None:
                return False
            request = ticket.answer.request
            del self._asked[request.id]
            self._totals["requests"] += 1
            self._totals["prompt_tokens"] += len(request.prompt_tokens)
            self._totals["completion_tokens"] += ticket.answer.count
            self._request_s += 0.1 * (time.monotonic() - ticket.started_s - self._request_s)
            self._go_on(ticket, self._send)  # if it never read its prompt, another has to
        return True
