"""An engine in this process: a thread decodes, event loops listen."""

from __future__ import annotations

import copy
import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch

from llmos.errors import CapacityError, ConflictError, ContextLengthError, EngineError, UsageError
from llmos.infer.batch import Batch
from llmos.infer.request import GenerationRequest, TokenEvent
from llmos.infer.sequence import Sequence
from llmos.infer.ticket import Outcome, Ticket, publish
from llmos.models import Tokenizer, weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CLOSED = "the engine is closed"

_log = logging.getLogger(__name__)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type that ``name`` (``auto``, ``float32`` or ``bfloat16``) stands for. Raises UsageError for others.

    ``auto`` is bfloat16 where the hardware multiplies it: 1.5 times as fast at 16 rows and twice for prompts (5.5 M
    parameters, one core of an AMD EPYC with AVX512-BF16). Other CPUs emulate it.
    """
    if name == "auto":
        native = device.type != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
        return torch.bfloat16 if native else torch.float32
    if name not in DTYPES:
        raise UsageError(f"`dtype` is {name}: expected auto, {' or '.join(DTYPES)}", param="dtype")
    return DTYPES[name]


class LocalEngine:
    """Generates with the model in ``model_dir``, up to ``max_batch`` requests at once; ``max_queue`` more may wait.

    ``context_length`` limits prompt and answer together (default, and at most: the model's). ``threads`` is how many
    cores one step may use: more than are free make it much slower. Raises ModelError for a directory that holds no
    model, UsageError for wrong arguments. Call :meth:`close` at the end.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        max_batch: int = 16,
        max_queue: int = 128,
        context_length: int | None = None,
        dtype: str = "auto",
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        where = torch.device(device)
        kind = pick_dtype(dtype, where)
        self.tokenizer = Tokenizer.load(model_dir)
        model = weights.load_model(model_dir, kind, where).eval()
        longest = model.config.max_position
        if context_length is not None and not 2 <= context_length <= longest:
            what = f"`context_length` is {context_length}: expected 2 to {longest}, the model's own"
            raise UsageError(what, param="context_length")
        self.context_length = context_length or longest
        self._max_batch, self._max_queue, self._threads = max_batch, max_queue, threads
        self._vocab_size, self._ends = model.config.vocab_size, model.config.eos_token_ids | self.tokenizer.stop_ids
        self._dtype = str(kind).removeprefix("torch.")
        self._batch = Batch(model, max_batch, self.context_length)
        self._wake = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[Sequence, Ticket] = {}
        self._tickets: dict[str, Ticket] = {}
        self._error: EngineError | None = None
        self._request_s = 1.0
        self._totals = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._thread = threading.Thread(target=self._run, name="llmos-engine", daemon=True)
        self._thread.start()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """See :class:`llmos.infer.engine.Engine`."""
        ticket = self._submit(request)
        try:
            async for event in ticket.events():
                yield event
        finally:
            self._drop(ticket)

    async def abort(self, request_id: str) -> None:
        """See :class:`llmos.infer.engine.Engine`."""
        with self._wake:
            ticket = self._tickets.get(request_id)
        if ticket is not None:
            self._drop(ticket)
            publish([(ticket, None)])

    def stats(self) -> dict[str, Any]:
        """See :class:`llmos.infer.engine.Engine`."""
        with self._wake:
            return {
                "healthy": self._error is None,
                "error": str(self._error) if self._error else None,
                "running": len(self._running),
                "waiting": len(self._waiting),
                "max_batch": self._max_batch,
                "max_queue": self._max_queue,
                "context_length": self.context_length,
                "dtype": self._dtype,
                **self._totals,
            }

    def close(self) -> None:
        """End every request with EngineError and stop the thread. Waits for the step in progress."""
        with self._wake:
            self._error = self._error or EngineError(_CLOSED)
            self._wake.notify()
        self._thread.join()

    def _submit(self, request: GenerationRequest) -> Ticket:
        prompt, sampling = request.prompt_tokens, request.sampling
        self._check(prompt)
        room = self.context_length - len(prompt)
        limit = min(room, sampling.max_tokens or room)
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        ticket = Ticket(Sequence(request, seed, self.tokenizer.stream(), limit, self._ends))
        with self._wake:
            if self._error is not None:
                raise copy.copy(self._error)
            if request.id in self._tickets:
                raise ConflictError(f"request `{request.id}` is already running: expected an id of its own")
            if len(self._tickets) >= self._max_batch + self._max_queue:
                raise self._full()
            self._tickets[ticket.id] = ticket
            self._waiting.append(ticket)
            self._wake.notify()
        return ticket

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

    def _full(self) -> CapacityError:
        wait_s = math.ceil(self._request_s * len(self._waiting) / self._max_batch)
        what = f"{len(self._running)} requests are running and {len(self._waiting)} waiting, as many as may"
        return CapacityError(what, hint=f"Ask again in {max(1, wait_s)} s.", retry_after_s=max(1, wait_s))

    def _drop(self, ticket: Ticket) -> None:
        """Nobody listens to ``ticket`` any more: its place in the queue is free now, its row before the next step."""
        with self._wake:
            ticket.gone = True
            self._tickets.pop(ticket.id, None)
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._wake.notify()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                while self._admit():
                    self._publish([(self._running[s], outcome) for s, outcome in self._batch.step()])
        except Exception as error:
            _log.exception("the engine failed")
            with self._wake:
                what = f"the engine failed and answers no more: {type(error).__name__}: {error}"
                self._error = EngineError(what, hint="Restart it; its log has the traceback.")
        self._publish([(ticket, self._error) for ticket in [*self._running.values(), *self._waiting]])
        self._waiting.clear()

    def _admit(self) -> bool:
        """Wait for work; let rows go that nobody listens to, and others in. Returns False when it is over."""
        with self._wake:
            self._wake.wait_for(lambda: self._error or self._waiting or self._running)
            if self._error:
                return False
            for ticket in [t for t in self._running.values() if t.gone]:
                self._batch.remove(ticket.sequence)
                del self._running[ticket.sequence]
            while self._waiting and not self._batch.full:
                ticket = self._waiting.popleft()
                ticket.started = time.monotonic()
                self._batch.add(ticket.sequence)
                self._running[ticket.sequence] = ticket
        return True

    def _publish(self, outcomes: list[tuple[Ticket, Outcome]]) -> None:
        for ticket, outcome in outcomes:
            if not isinstance(outcome, TokenEvent) or outcome.finish_reason:
                self._settle(ticket, outcome)
        publish(outcomes)

    def _settle(self, ticket: Ticket, last: Outcome) -> None:
        with self._wake:
            self._running.pop(ticket.sequence, None)
            self._tickets.pop(ticket.id, None)
            self._totals["requests"] += 1
            self._totals["prompt_tokens"] += len(ticket.sequence.request.prompt_tokens)
            self._totals["completion_tokens"] += ticket.sequence.count
            if isinstance(last, TokenEvent):
                self._request_s += 0.1 * (time.monotonic() - ticket.started - self._request_s)
