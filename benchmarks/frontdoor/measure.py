"""Contenders side by side: each load goes to each of them in turn, in rounds.

Two Ray clusters never run at once, so there are three groups, one after the other; the bare engine and our front door
are in each. A difference or a ratio is the median over the rounds of one group: what was measured seconds apart.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.frontdoor.client import Load, Sample
from benchmarks.frontdoor.contenders import (
    BARE,
    ECHO,
    OURS,
    PROXY,
    SERVE,
    SERVE_TUNED,
    Address,
    Client,
    Contenders,
)
from benchmarks.frontdoor.mock import AT_ONCE, EVERY_5_MS, EVERY_10_MS
from benchmarks.peers import Missing
from benchmarks.rows import Options, Unmeasured

_PROMPT = "The front door reads this. " * 40
"""1,080 characters, as a short system prompt and a question have."""
_SHORT = "Is it so?"
_WARM_S, _WARM_TRIES = 1.0, 3
_ENOUGH = 2
"""Answers that there must be in a sample."""
ECHO_PATH = "/echo"


@dataclass(frozen=True, slots=True)
class Workload:
    """``streams`` requests at once for ``tokens`` tokens of ``model``, streamed or not; ``seconds`` in each round."""

    name: str
    model: str
    streams: int
    tokens: int
    seconds: float
    stream: bool = True
    prompt: str = _PROMPT

    @property
    def body(self) -> dict[str, Any]:
        """What is asked."""
        messages = [{"role": "user", "content": self.prompt}]
        return {"model": self.model, "messages": messages, "max_tokens": self.tokens, "stream": self.stream}

    def give(self, client: Client, address: Address) -> Sample:
        """One round of it. Raises RuntimeError when an answer is wrong or missing."""
        where, events = (address.port, address.path, address.key), self.tokens if self.stream else 0
        return client.run(Load(*where, self.body, self.streams, self.seconds, events))


TTFT_1 = Workload("ttft, 1 stream", EVERY_5_MS, 1, 4, 5.0)
TTFT_8 = Workload("ttft, 8 streams", EVERY_10_MS, 8, 16, 5.0)
CHUNKS_16 = Workload("chunks, 16 streams", AT_ONCE, 16, 128, 3.0)
CHUNKS_64 = Workload("chunks, 64 streams", AT_ONCE, 64, 128, 3.0)
SHORT = Workload("short requests", AT_ONCE, 32, 1, 3.0, stream=False, prompt=_SHORT)
WORKLOADS = (TTFT_1, TTFT_8, CHUNKS_16, CHUNKS_64, SHORT)


@dataclass(frozen=True, slots=True)
class Group:
    """What was measured side by side: ``samples[contender][workload]`` has one sample of each round.

    ``failed`` says why a contender has none of a workload."""

    samples: Mapping[str, Mapping[str, Sequence[Sample]]]
    failed: Mapping[tuple[str, str], str]

    def median(self, contender: str, workload: Workload, figure: Figure) -> float:
        """Over the rounds."""
        return statistics.median(self._figures(contender, workload, figure))

    def added(self, contender: str, workload: Workload, figure: Figure) -> float:
        """What ``contender`` adds to the bare engine's figure: the median over the rounds."""
        its, bare = (self._figures(name, workload, figure) for name in (contender, BARE))
        return statistics.median(one - other for one, other in zip(its, bare, strict=True))

    def ratio(self, contender: str, other: str, workload: Workload, figure: Figure) -> float:
        """``contender``'s figure over that of ``other``: the median over the rounds."""
        its, others = (self._figures(name, workload, figure) for name in (contender, other))
        return statistics.median(one / another for one, another in zip(its, others, strict=True))

    def _figures(self, contender: str, workload: Workload, figure: Figure) -> list[float]:
        """One of each round. Raises Unmeasured."""
        if why := self.failed.get((contender, workload.name)):
            raise Unmeasured(f"{contender}: {why}")
        try:
            return [figure(sample) for sample in self.samples[contender][workload.name]]
        except Unmeasured as error:
            raise Unmeasured(f"{contender}, {workload.name}: {error}") from error


Figure = Callable[[Sample], float]


def event_rate(sample: Sample) -> float:
    """Events that came, per second; unless answers take so long that their beginning and end count."""
    _enough(sample)
    return sample.events / sample.seconds


def answer_rate(sample: Sample) -> float:
    """Answers that were complete, per second."""
    _enough(sample)
    return sample.answers / sample.seconds


def _enough(sample: Sample) -> None:
    if sample.answers < _ENOUGH:
        raise Unmeasured(f"only {sample.answers} answers were complete within {sample.seconds:g} s")


def ttft_ms(percent: int) -> Figure:
    """A percentile of the times from sending a request to the first event of its answer."""

    def figure(sample: Sample) -> float:
        _enough(sample)
        return statistics.quantiles(sample.first_s, n=100, method="inclusive")[percent - 1] * 1000

    return figure


@functools.cache
def alone(options: Options) -> Group:
    """Without any Ray: the bare engine, ours and LiteLLM."""
    contenders = Contenders()
    return _group(options, contenders, {PROXY: contenders.proxy})


@functools.cache
def beside_serve(options: Options, tuned: bool) -> Group:
    """With Ray Serve beside them."""
    contenders = Contenders()
    return _group(options, contenders, {SERVE_TUNED if tuned else SERVE: lambda _: contenders.serve(tuned)})


def _group(
    options: Options, contenders: Contenders, peers: Mapping[str, Callable[[Address], AbstractContextManager[Address]]]
) -> Group:
    """Raises what starting the engine or the load raises."""
    _need_cpu(options)
    failed: dict[tuple[str, str], str] = {}
    with ExitStack() as stack:
        client = Client()
        stack.callback(client.close)
        engine = stack.enter_context(contenders.engine())
        addresses = {BARE: engine}
        for name, start in {OURS: contenders.ours, **peers}.items():
            try:
                addresses[name] = stack.enter_context(start(engine))
                _warm(client, addresses[name])
            except (Missing, RuntimeError) as error:
                addresses.pop(name, None)
                failed |= {(name, workload.name): str(error) for workload in WORKLOADS}
        turns = _turns(options, client, addresses, failed)
    return Group(turns, failed)


def _warm(client: Client, address: Address) -> None:
    """Connections are made and code is read; a proxy may still be finding its replica. Raises RuntimeError."""
    for left in reversed(range(_WARM_TRIES)):
        try:
            for one in (CHUNKS_16, SHORT):
                replace(one, seconds=_WARM_S).give(client, address)
            return
        except RuntimeError:
            if not left:
                raise
            time.sleep(_WARM_S)


def _turns(
    options: Options, client: Client, addresses: Mapping[str, Address], failed: dict[tuple[str, str], str]
) -> dict[str, dict[str, list[Sample]]]:
    """Rounds of all workloads for all contenders. Who fails at one gets it no more, and is in ``failed``."""
    rounds, part = (2, 0.4) if options.quick else (5, 1.0)
    found: dict[str, dict[str, list[Sample]]] = {name: {} for name in (*addresses, ECHO)}
    for turn in range(rounds):
        for workload in WORKLOADS:
            one = replace(workload, seconds=workload.seconds * part)
            for name, address in _asked(workload, addresses):
                if (name, one.name) in failed:
                    continue
                try:
                    found[name].setdefault(one.name, []).append(one.give(client, address))
                except RuntimeError as error:
                    failed[name, one.name] = f"{one.name}: {error}"
        print(f"{', '.join(addresses)}: round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def _asked(workload: Workload, addresses: Mapping[str, Address]) -> list[tuple[str, Address]]:
    """Who gets ``workload``: short requests also go past our checks."""
    if workload is not SHORT or OURS not in addresses:
        return list(addresses.items())
    return [*addresses.items(), (ECHO, replace(addresses[OURS], path=ECHO_PATH))]


def _need_cpu(options: Options) -> None:
    if options.device != "cpu":
        raise Unmeasured("skipped: a row of the CPU; run without DEVICE")
