"""Engines in turn on the same requests, each at its own best.

First every engine is tried in each of its settings (one that is hopeless is tried no more); then those that were best
take turns, so that a slow moment of the machine meets all of them. Ratios are medians over the turns, of what was
measured side by side.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.serve_contenders import Contender
from benchmarks.serve_load import NEW_TOKENS, PROMPT_TOKENS, Load, prompts


@dataclass(frozen=True, slots=True)
class Setting:
    """What an engine may be started with."""

    threads: int
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        return f"{self.threads} threads, {self.dtype}"


HOPELESS = 0.75
"""What a setting must reach of its engine's best one with one workload to be tried with the next."""

Start = Callable[[Setting], Contender]


@dataclass(frozen=True, slots=True)
class Engine:
    """How an engine is started, and the settings that it is tried in."""

    start: Start
    settings: Sequence[Setting]


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
    """What one engine did with one workload: in its best setting, and tokens/s of all that were ``tried``."""

    setting: Setting
    tried: Mapping[Setting, float]
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
        tried = ", ".join(f"{setting}: {rate:,.4g}" for setting, rate in self.tried.items())
        return f"{self.rate:,.4g} with {self.setting} (tried {tried})"


Table = dict[str, dict[str, Found]]
"""By workload and engine."""


def compare(engines: Mapping[str, Engine], workloads: Sequence[Workload], turns: int, title: str) -> Table:
    """Every engine on every workload. What is tried and found goes to stderr as it comes."""
    seeds = itertools.count(turns + 1)
    tries = {workload.name: next(seeds) for workload in workloads}
    with ExitStack() as stack:
        table: Table = {workload.name: {} for workload in workloads}
        started: dict[str, dict[Setting, Contender]] = {}
        for name, engine in engines.items():
            started[name] = _try(name, engine, workloads, tries, table, stack)
        for workload in workloads:
            for seed in itertools.islice(seeds, turns):
                for name, best in table[workload.name].items():
                    best.loads.append(workload.give(started[name][best.setting], seed))
                    best.rates.append(workload.rate(best.loads[-1]))
            for name, best in table[workload.name].items():
                print(f"{title} {workload.name}: {name} {best} tokens/s", file=sys.stderr, flush=True)
    return table


def _try(
    name: str,
    engine: Engine,
    workloads: Sequence[Workload],
    seeds: Mapping[str, int],
    table: Table,
    stack: ExitStack,
) -> dict[Setting, Contender]:
    """Fill in what ``engine`` is best in. Returns it as it was started; what was best for nothing is closed again."""
    with ExitStack() as trial:
        started = {setting: _started(engine, setting, trial) for setting in engine.settings}
        hopeful = list(started)
        for workload in workloads:
            seed = seeds[workload.name]
            tried = {setting: workload.rate(workload.give(started[setting], seed)) for setting in hopeful}
            best = max(tried, key=tried.__getitem__)
            table[workload.name][name] = Found(best, tried)
            hopeful = [setting for setting in hopeful if tried[setting] >= HOPELESS * tried[best]]
        kept = {table[workload.name][name].setting for workload in workloads}
        for setting in kept:
            stack.callback(started[setting].close)
        trial.pop_all()
    for setting in set(started) - kept:
        started[setting].close()
    return started


def _started(engine: Engine, setting: Setting, stack: ExitStack) -> Contender:
    one = engine.start(setting)
    stack.callback(one.close)
    one.run(prompts(1, seed=0), 1)  # the first request of a process takes longer
    return one
