"""Engines in turn on the same requests, each at its own best number of threads.

First every engine is tried with every number of threads; then those that were best take turns, so that a slow moment of
the machine meets all of them. Ratios are medians over the turns, of what was measured side by side.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.serve_contenders import Contender
from benchmarks.serve_load import NEW_TOKENS, PROMPT_TOKENS, Load, prompts

Start = Callable[[int], Contender]
"""Starts an engine with so many threads."""


@dataclass(frozen=True, slots=True)
class Workload:
    """``requests`` prompts of ``prompt`` tokens, ``concurrency`` at once, each answered with ``new`` tokens."""

    name: str
    concurrency: int
    requests: int
    prompt: int = PROMPT_TOKENS
    new: int = NEW_TOKENS

    def give(self, engine: Contender, turn: int) -> Load:
        """One turn; its prompts are those of no other turn, so that no cache knows them."""
        return engine.run(prompts(self.requests, self.prompt, seed=turn), self.concurrency, self.new)

    def rate(self, load: Load) -> float:
        """Tokens per second: those generated, or those read where only one is generated."""
        return self.prompt * self.requests / load.wall_s if self.new == 1 else load.rate


@dataclass(slots=True)
class Found:
    """What one engine did with one workload: at its best number of ``threads``, and tokens/s at all ``tried``."""

    threads: int
    tried: Mapping[int, float]
    loads: list[Load] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens per second, median."""
        return statistics.median(self.rates)

    def over(self, peer: Found) -> float:
        """How much faster than ``peer``, turn by turn."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.rates, peer.rates, strict=True))

    def ttft_s(self) -> float:
        """Time to first token, median of the turns' medians."""
        return statistics.median(load.ttft_s for load in self.loads)

    def __str__(self) -> str:
        tried = ", ".join(f"{threads}: {rate:,.4g}" for threads, rate in self.tried.items())
        return f"{self.rate:,.4g} with {self.threads} threads (tried {tried})"


Table = dict[str, dict[str, Found]]
"""By workload and engine."""


def compare(
    engines: Mapping[str, Start], workloads: Sequence[Workload], counts: Sequence[int], turns: int, title: str
) -> Table:
    """Every engine on every workload. What is tried and found goes to stderr as it comes."""
    with ExitStack() as stack:
        started = {(name, n): _started(start, n, stack) for name, start in engines.items() for n in counts}
        table: Table = {}
        seeds = iter(range(1, 1_000_000))
        for workload in workloads:
            table[workload.name] = found = dict(_tried(engines, workload, started, seeds))
            for _ in range(turns):
                seed = next(seeds)
                for name, best in found.items():
                    best.loads.append(workload.give(started[name, best.threads], seed))
                    best.rates.append(workload.rate(best.loads[-1]))
            for name, best in found.items():
                print(f"{title} {workload.name}: {name} {best} tokens/s", file=sys.stderr, flush=True)
    return table


def _started(start: Start, threads: int, stack: ExitStack) -> Contender:
    engine = start(threads)
    stack.callback(engine.close)
    engine.run(prompts(1, seed=0), 1)  # the first request of a process takes longer
    return engine


def _tried(
    engines: Mapping[str, Start],
    workload: Workload,
    started: Mapping[tuple[str, int], Contender],
    seeds: Iterator[int],
) -> Iterator[tuple[str, Found]]:
    seed = next(seeds)
    for name in engines:
        counts = [threads for other, threads in started if other == name]
        tried = {n: workload.rate(workload.give(started[name, n], seed)) for n in counts}
        yield name, Found(max(tried, key=tried.__getitem__), tried)
