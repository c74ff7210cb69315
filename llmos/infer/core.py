"""One process's loop over a model: which tokens next, the step, the choice of tokens, who is over.

No event loop, no text, no HTTP: :mod:`llmos.infer.link` brings requests and takes outcomes away.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmos.errors import LlmosError
from llmos.infer.assemble import step_of, wanted
from llmos.infer.batching import Batching
from llmos.infer.blocks import Blocks
from llmos.infer.compiling import Compiling
from llmos.infer.entry import Batch, Entry, Part
from llmos.infer.grammar import Matcher
from llmos.infer.messages import CoreRequest, Outcome, late
from llmos.infer.meter import Meter
from llmos.infer.patience import Patience
from llmos.infer.sampling import Sampled, Sampler
from llmos.infer.speculative import Ask, Speculation
from llmos.infer.step import BLOCK_TOKENS, Better, Runner, Watched
from llmos.infer.trial import trial

if TYPE_CHECKING:
    from llmos.models import Tokenizer

HANG_S = 12.0
"""A step hangs that takes longer than this, and much longer than any before; see :class:`Patience`."""
GRAMMAR_S = 0.01
"""How long an idle core waits for a grammar before it looks for other requests."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a core: sequences that run at once, tokens of a step, tokens of a sequence; and whether prompts are cached."""

    max_running: int
    token_budget: int
    context_length: int
    prefix_cache: bool = True


@dataclass(slots=True)
class _Live:
    """A request that is not over. ``ends`` end its answer. ``cached`` of its prompt were there when that was begun."""

    ends: frozenset[int]
    entry: Entry
    cached: int | None = None


class EngineCore:
    """Generates with ``runner``, whose cache it manages. What ``better`` gives, if it comes, takes its place.
    ``tokenizer`` is called when the first grammar is compiled, in a thread of its own; ``about`` is part of the stats.
    A ``speculation`` is made for the core's sampler.

    What concerns one request is its outcome; :meth:`step` raises what concerns all of them, and then it is over.
    """

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        *,
        tokenizer: Callable[[], Tokenizer],
        about: Mapping[str, Any] | None = None,
        better: Better | None = None,
        speculation: Callable[[Sampler], Speculation] | None = None,
    ) -> None:
        self._sampler, self._limits, self._better = Sampler(), limits, better
        self._speculation = None if speculation is None else speculation(self._sampler)
        self._given = dict(about or {})
        self._compiling = Compiling(tokenizer)
        self._live: dict[str, _Live] = {}
        self._flight: deque[Batch] = deque()
        self._news: list[Outcome] = []
        self._meter = Meter()
        self._patience = Patience(HANG_S)
        self._began_s: float | None = None
        self._limit_s = 0.0
        self._use(runner)

    @property
    def busy(self) -> bool:
        """Whether :meth:`step` has something to do."""
        return bool(self._live or self._flight or self._compiling or self._news)

    def add(self, request: CoreRequest) -> None:
        """Begin with ``request`` in the next step that has room. What is wrong with it becomes its outcome."""
        if request.sampling.grammar is None:
            self._begin(request, None)
        else:
            self._compiling.add(request)

    def cancel(self, id: str) -> None:
        """Forget the request: its blocks are free now, or after the step they are used in. None such: nothing."""
        self._compiling.remove(id)
        if self._live.pop(id, None) is not None:
            self._batching.cancel(id)
            self._sampler.remove(id)
            if self._speculation is not None:
                self._speculation.remove(id)

    @torch.inference_mode()
    def step(self) -> list[Outcome]:
        """Start as many steps as the runner takes, and finish the oldest; with nothing to do, see that the runner is
        still there. Raises what the runner raises."""
        self._take_compiled()
        outcomes, self._news = self._news, []
        if self._better is not None and self._better.done() and not self._flight:
            self._improve(self._better)
        self._limit_s = self._patience.limit_s(self._limits.token_budget)
        self._began_s = began_s = time.monotonic()
        self._start(outcomes)
        if tokens := self._tokens_in_flight():
            self._finish(outcomes)
            self._patience.learn(tokens, time.monotonic() - began_s)
        elif isinstance(self._runner, Watched):
            self._runner.watch()
        self._began_s = None
        return outcomes

    def overdue_s(self) -> float | None:
        """How long the step in progress has taken, if that is so long that it hangs. For another thread to ask."""
        began_s = self._began_s
        taken_s = 0.0 if began_s is None else time.monotonic() - began_s
        return taken_s if taken_s > self._limit_s else None

    def stats(self) -> dict[str, Any]:
        """How it is doing, JSON-able."""
        return {
            "running": len(self._batching.running),
            "waiting": len(self._live) + len(self._compiling) - len(self._batching.running),
            **{"blocks": self._blocks.count, "blocks_free": self._blocks.free},
            "step_limit_s": self._patience.limit_s(self._limits.token_budget),
            **self._meter.stats(),
            **({} if self._speculation is None else self._speculation.stats()),
            **self._about,
        }

    def close(self) -> None:
        """End the runner."""
        self._compiling.close()
        if self._speculation is not None:
            self._speculation.close()
        self._runner.close()

    def _begin(self, request: CoreRequest, matcher: Matcher | None) -> None:
        entry = Entry(
            request.id,
            list(request.prompt),
            len(request.prompt),
            limit=request.limit,
            tenant=request.tenant,
            user=request.user,
            weight=request.weight,
            priority=request.priority,
            arrived=request.arrived,
            deadline=request.deadline,
        )
        try:
            self._batching.add(entry)
        except LlmosError as error:
            self._news.append(Outcome(request.id, error=error))
            return
        ends = request.sampling.ends(request.ends)
        self._sampler.add(request.id, request.sampling, request.seed, request.prompt, ends, matcher)
        self._live[request.id] = _Live(ends, entry)

    def _take_compiled(self) -> None:
        """Begin with those whose grammar is ready."""
        for request, matcher in self._compiling.take(0.0 if self._live or self._flight or self._news else GRAMMAR_S):
            if isinstance(matcher, LlmosError):
                self._news.append(Outcome(request.id, error=matcher))
            else:
                self._begin(request, matcher)

    def _use(self, runner: Runner) -> None:
        """Go on with ``runner``, whose cache is empty, if its first step works: it shows how long others may take."""
        began_s = time.monotonic()
        try:
            runner.start(trial(BLOCK_TOKENS))
            runner.finish()
        except BaseException:
            runner.close()
            raise
        self._patience = Patience(HANG_S)
        self._patience.learn(BLOCK_TOKENS, time.monotonic() - began_s)
        self._runner, self._about = runner, {**runner.stats(), **self._given}
        limits = self._limits
        self._blocks = Blocks(runner.blocks, limits.prefix_cache)
        self._batching = Batching(
            self._blocks,
            max_running=limits.max_running,
            token_budget=max(limits.max_running, limits.token_budget // runner.depth),  # for all steps in flight
            context_length=limits.context_length,
            depth=runner.depth,
        )

    def _improve(self, better: Better) -> None:
        """Use the better runner. Those who run are read again, with the answers they have."""
        self._better = None
        if (error := better.exception()) is not None:  # whatever it is: what there is works
            _log.warning("the engine stays with what it has: %s: %s", type(error).__name__, error)
            return
        old = self._runner
        try:
            self._use(better.result()())
        except Exception:
            _log.exception("the engine stays with what it has: the first step of the better runner failed")
            return
        old.close()
        for live in self._live.values():
            live.entry = dataclasses.replace(live.entry, computed=0, table=None, drafts=())
            self._batching.add(live.entry)
        _log.info("the engine goes on with %s", self._about["runner"])

    def _start(self, outcomes: list[Outcome]) -> None:
        while len(self._flight) < self._runner.depth:
            if self._speculation is not None:
                self._draft(self._speculation)
            batch = self._batching.next_batch(time.monotonic())
            self._meter.preempted(len(batch.preempted))
            for entry in batch.expired:
                error = late(len(entry.tokens) - entry.prompt, entry.limit - entry.prompt)
                outcomes.append(Outcome(entry.id, error=error))
                self.cancel(entry.id)
            if not batch.parts:
                return
            for part in batch.parts:
                live = self._live[part.entry.id]
                if live.cached is None:
                    live.cached = part.entry.computed
                    self._meter.began(part.entry.prompt, part.entry.computed)
            self._flight.append(batch)
            self._limit_s = self._patience.limit_s(self._tokens_in_flight())
            self._runner.start(step_of(batch))

    def _tokens_in_flight(self) -> int:
        return sum(part.count for batch in self._flight for part in batch.parts)

    def _draft(self, speculation: Speculation) -> None:
        ready = [entry for entry in self._batching.running if entry.decoding and not entry.in_flight]
        drafts = speculation.propose([Ask(e.id, e.tokens, e.limit - 1 - len(e.tokens)) for e in ready])
        for entry in ready:
            entry.drafts = drafts.get(entry.id, ())

    def _finish(self, outcomes: list[Outcome]) -> None:
        """Choose the tokens after the oldest step."""
        batch = self._flight.popleft()
        logits_LV = self._runner.finish()
        parts, rows = wanted(batch, self._live)  # those that were cancelled since are not
        new = self._chosen(parts, logits_LV if len(rows) == len(logits_LV) else logits_LV[rows]) if parts else []
        for outcome in new:
            if outcome.error is not None:
                self.cancel(outcome.id)  # before its batch is settled: nothing of it is kept
        got = {outcome.id: outcome.tokens for outcome in new if outcome.error is None}
        if self._speculation is not None:
            self._learn(self._speculation, batch, got)
        self._batching.settle(batch, got)
        for outcome in new:
            if outcome.reason is not None:
                self.cancel(outcome.id)
        self._meter.stepped(sum(map(len, got.values())))
        outcomes += new

    def _learn(self, speculation: Speculation, batch: Batch, got: Mapping[str, Sequence[int]]) -> None:
        for part in batch.parts:
            if (tokens := got.get(part.entry.id)) is not None:
                speculation.settle(part.entry.id, len(part.entry.drafts), len(tokens) - 1)
        if all(part.logits == part.count for part in batch.parts) and self._began_s is not None:
            speculation.stepped(sum(part.count for part in batch.parts), time.monotonic() - self._began_s)

    def _chosen(self, parts: list[Part], logits_LV: Tensor) -> list[Outcome]:
        """What each of ``parts`` gets."""
        found = self._sampler.verify([(part.entry.id, part.entry.drafts) for part in parts], logits_LV)
        return [self._outcome(part.entry, one) for part, one in zip(parts, found, strict=True)]

    def _outcome(self, entry: Entry, found: Sampled | LlmosError) -> Outcome:
        """The tokens up to the end of the answer, if it is among them."""
        if isinstance(found, LlmosError):
            return Outcome(entry.id, error=found)
        live, room = self._live[entry.id], entry.limit - len(entry.tokens)
        for count, token in enumerate(found.tokens, 1):
            if token in live.ends or count == room:
                reason = "stop" if token in live.ends else "length"
                return Outcome(entry.id, found.tokens[:count], found.logprobs[:count], reason, None, live.cached or 0)
        return Outcome(entry.id, found.tokens, found.logprobs, cached=live.cached or 0)
