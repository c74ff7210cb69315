"""An encoder's batches: which texts are computed next, and whose vectors are complete.

Texts of all requests wait in one fair queue. A batch takes them in its order until it is full, whatever request they
are of, and computes them sorted by length: nothing is padded, and those of one length share their attention.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmos.errors import DeadlineError, EngineError
from llmos.infer.encoder_messages import Encoded, EncodeRequest, Text, Vectors
from llmos.infer.entry import Entry
from llmos.infer.fairness import FairQueue
from llmos.infer.meter import Meter
from llmos.infer.patience import Patience

HANG_S = 10.0
"""A batch hangs that takes longer than this, and much longer than any before; see :class:`Patience`."""

Encode = Callable[[Sequence[Text]], Vectors]
"""The vectors of texts that are sorted by length."""


@dataclass(slots=True, eq=False)
class _Job:
    """A request, the vectors of its texts so far, and those of its texts that wait, with their numbers."""

    request: EncodeRequest
    vectors_ND: Vectors
    waiting: dict[Entry, int] = field(default_factory=dict)


class EncoderCore:
    """Encodes batches of at most ``max_batch`` texts and ``token_budget`` tokens, vectors ``width`` wide.

    A batch that is not full waits for more until its oldest request has waited ``max_wait_s``. ``clock`` and ``sleep``
    are of seconds.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        width: int,
        max_batch: int,
        token_budget: int,
        max_wait_s: float,
        about: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._encode, self._width, self._about = encode, width, about or {}
        self._max_batch, self._token_budget, self._max_wait_s = max_batch, token_budget, max_wait_s
        self._clock, self._sleep = clock, sleep
        self._queue, self._meter, self._patience = FairQueue(), Meter(), Patience(HANG_S)
        self._jobs: dict[str, _Job] = {}
        self._job_of: dict[Entry, _Job] = {}
        self._entries = self._texts = self._waiting_tokens = 0
        self._began_s: float | None = None
        self._limit_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether :meth:`step` has something to do."""
        return bool(self._jobs)

    def add(self, request: EncodeRequest) -> None:
        """One more request; it has at least one text."""
        job = _Job(request, np.empty((len(request.texts), self._width), np.float32))
        self._jobs[request.id] = job
        for number, text in enumerate(request.texts):
            entry = Entry(
                request.id,
                list(text),
                len(text),
                limit=len(text),
                tenant=request.tenant,
                user=request.user,
                weight=request.weight,
                priority=request.priority,
                arrived=request.arrived,
            )
            entry.number = self._entries = self._entries + 1
            job.waiting[entry], self._job_of[entry] = number, job
            self._queue.add(entry)
            self._waiting_tokens += len(text)

    def cancel(self, id: str) -> None:
        """Forget the request; nothing happens if there is none."""
        if (job := self._jobs.pop(id, None)) is not None:
            for entry in job.waiting:
                self._queue.remove(entry)
                del self._job_of[entry]
                self._waiting_tokens -= len(entry.tokens)

    def step(self) -> list[Encoded]:
        """Compute a batch, or wait for it to fill. Returns what is complete, and what is too late."""
        late = self._late()
        if not self._jobs or self._waited():
            return late
        batch = self._batch()
        tokens = sum(len(entry.tokens) for entry in batch)
        self._limit_s, self._began_s = self._patience.limit_s(tokens), time.monotonic()
        vectors_ND = self._encode([tuple(entry.tokens) for entry in batch])
        self._patience.learn(tokens, time.monotonic() - self._began_s)
        self._began_s = None
        self._meter.stepped(tokens)
        self._texts += len(batch)
        return late + [self._done(job) for job in self._settle(batch, vectors_ND) if not job.waiting]

    def overdue_s(self) -> float | None:
        """How long the batch in progress has taken, if that is so long that it hangs. For another thread to ask."""
        began_s = self._began_s
        taken_s = 0.0 if began_s is None else time.monotonic() - began_s
        return taken_s if taken_s > self._limit_s else None

    def stats(self) -> dict[str, Any]:
        """How it is doing, JSON-able: ``running`` requests have a text that was computed, ``waiting`` ones none."""
        running = sum(len(job.waiting) < len(job.request.texts) for job in self._jobs.values())
        return {
            "running": running,
            "waiting": len(self._jobs) - running,
            "waiting_texts": len(self._job_of),
            "waiting_tokens": self._waiting_tokens,
            "texts": self._texts,
            "step_limit_s": self._limit_s,
            **self._meter.stats(),
            **self._about,
        }

    def close(self) -> None:
        """Let go of the model."""
        del self._encode

    def _late(self) -> list[Encoded]:
        """Requests whose deadline has passed: they end."""
        now, over = self._clock(), []
        for id, job in list(self._jobs.items()):
            if job.request.deadline is not None and job.request.deadline <= now:
                made, asked = len(job.request.texts) - len(job.waiting), len(job.request.texts)
                self.cancel(id)
                over.append(Encoded(id, error=late(made, asked)))
        return over

    def _waited(self) -> bool:
        """Whether this step was spent on waiting for more texts."""
        oldest = next(iter(self._jobs.values())).request.arrived
        left_s = oldest + self._max_wait_s - self._clock()
        full = len(self._job_of) >= self._max_batch or self._waiting_tokens >= self._token_budget
        if full or left_s <= 0:
            return False
        self._sleep(left_s)
        return True

    def _batch(self) -> list[Entry]:
        """What is computed next, by length; at least one text."""
        batch: list[Entry] = []
        now, room = self._clock(), self._token_budget
        while len(batch) < self._max_batch and (entry := self._queue.first(now)) is not None:
            if batch and len(entry.tokens) > room:
                break
            self._queue.take(entry, now)
            self._queue.charge(entry, len(entry.tokens))
            batch.append(entry)
            room -= len(entry.tokens)
        return sorted(batch, key=lambda entry: len(entry.tokens))

    def _settle(self, batch: Sequence[Entry], vectors_ND: Vectors) -> list[_Job]:
        """Put the vectors where they belong. Returns whose they are, each once."""
        jobs: dict[_Job, None] = {}
        for entry, vector_D in zip(batch, vectors_ND, strict=True):
            job = self._job_of.pop(entry)
            job.vectors_ND[job.waiting.pop(entry)] = vector_D
            self._waiting_tokens -= len(entry.tokens)
            jobs[job] = None
        return list(jobs)

    def _done(self, job: _Job) -> Encoded:
        del self._jobs[job.request.id]
        if not np.isfinite(job.vectors_ND).all():  # JSON has no word for them, and they are near to nothing
            what = "the model made a vector that is not finite"
            return Encoded(job.request.id, error=EngineError(what, hint="Check its weights, or serve it as float32."))
        return Encoded(job.request.id, job.vectors_ND)


def late(made: int, asked: int) -> DeadlineError:
    """For a request of which ``made`` vectors of ``asked`` were there at its deadline."""
    what = f"the vectors were not complete by the deadline: {made} of {asked} were made"
    return DeadlineError(what, hint="Allow more time, or send fewer texts at once.")
