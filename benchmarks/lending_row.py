"""``lending``: one cluster whose service lends its idle GPUs to training, beside two clusters of the same size in all.

The load is Azure's conversation trace, again and again for 48 hours, thinned to a daily cycle; what trains are 500
elastic jobs, more than any of the clusters gets done. A replica is a model of 32 B parameters on one A100, as fast as
``core/capacity`` takes it to be. The service of two clusters has a fixed number of replicas, the fewest that keep 99 %
of the promises; the cluster that trains, all the time, is as large. Every start of a replica and every change of a job
is charged.

What could be reached at all says a third cluster, whose service knows what will come: it has at any time as many
replicas as requests need within the next cold start, and a part less of them all, so that it keeps as many of the
promises as the fixed one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from benchmarks.rows import Measured, Options, Unmeasured
from llmos.core.capacity import KINDS, USABLE, serving_memory, shape_of_size
from llmos.core.capacity.serving import MOST_SEQUENCES, NUMBER, prompt_seconds, token_seconds
from llmos.core.replicas import ATTAINED, Promises, Rates, Scale, Traffic, slots
from llmos.sim.cluster_twin import TICK_S, Result, twin
from llmos.sim.fleet import Fleet, Plans
from llmos.sim.job_traces import TraceJob
from llmos.sim.request_traces import Request, read_requests, tiled

TRACE = "traces/azure_llm_conv.csv"
MOST = 32
"""Replicas that are tried."""
HOURS, QUICK_HOURS = 48.0, 12.0
SWING = 0.7
"""At midnight three of ten requests of the trace come, at noon all."""
JOBS, LARGEST, JOB_S, TEAMS = 500, 8, 7200.0, 4
"""Elastic jobs of four teams: one to eight GPUs each, two hours on eight."""
PROMISES = Promises(first_token_s=2.0, token_s=0.05)
START_S = 75.0
"""Until a new replica answers: 15 s in which a job leaves its checkpoint, 60 s of a cold start."""
PARTS = tuple(part / 100 for part in range(76, 101, 2))
"""Of what an all-knowing service needs at most, the parts that are tried."""
SHARES = (25, 50, 75)
SEED = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """``attained``: per cent of the requests whose promises were kept. ``goodput``: GPU hours of training that are
    done, without those lost to restarts."""

    attained: float
    goodput: float


class AllKnowing(Fleet):
    """A service whose replicas are there when they are needed: of the most that is needed (by the second) within a cold
    start from now on, ``part``."""

    def __init__(self, plans: Plans, requests: Sequence[Request], needs: npt.NDArray[np.float64], part: float) -> None:
        super().__init__(plans, requests)
        self._needs, self._part = needs, part

    def rescale(self, now: float) -> bool:
        """See Fleet."""
        before, ahead_s = self.wanted.count, self.plans.rates.start_s + 2 * TICK_S
        most = float(self._needs[int(now) : int(now + ahead_s) + 1].max(initial=0.0))
        low, high = self.plans.bounds
        self.wanted = Scale(min(max(math.ceil(self._part * most), low), high))
        return self.wanted.count != before


class Contest:
    """The same requests and jobs on one cluster of ``gpus`` GPUs, and on two that share them, for ``hours``.

    With half of them, a fixed service keeps its promises just so. Raises Unmeasured if that takes too many.
    """

    def __init__(self, requests: Sequence[Request], hours: float) -> None:
        self._until_s = 3600 * hours
        self._requests = requests
        self._rates = _rates(requests)
        self._needs = _needs(requests, self._rates, self._until_s)
        self._apart: dict[int, Outcome] = {}
        self.fewest = self._fewest()
        self.gpus = 2 * self.fewest

    def together(self, fleet: Fleet | None = None) -> tuple[Outcome, Result]:
        """On one cluster, with the service as it is or with that of ``fleet``."""
        service = fleet or self._fleet(1, self.gpus)
        found = twin(_jobs(self.gpus), [service], 2, self.fewest, self._until_s)
        return Outcome(_attained(found), self._goodput(found, self.gpus)), found

    def bound(self) -> Outcome:
        """On one cluster, with a service that knows what will come and keeps as much as the fixed one."""

        def enough(part: float) -> bool:
            found = twin([], [self._all_knowing(part)], 2, self.fewest, self._until_s)
            return _attained(found) >= self.apart(self.fewest).attained

        first = min(bisect_left(PARTS, True, key=enough), len(PARTS) - 1)
        return self.together(self._all_knowing(PARTS[first]))[0]

    def attained(self, replicas: int) -> float:
        """Per cent of the requests whose promises a fixed number of replicas keeps."""
        return _attained(twin([], [self._fleet(replicas, replicas)], 1, replicas, self._until_s))

    def apart(self, replicas: int) -> Outcome:
        """On two clusters, one of them with so many replicas."""
        if replicas not in self._apart:
            left = self.gpus - replicas
            trained = twin(_jobs(left), [], 1, left, self._until_s)
            self._apart[replicas] = Outcome(self.attained(replicas), self._goodput(trained, left))
        return self._apart[replicas]

    def _fewest(self) -> int:
        """The fewest replicas that are enough."""
        sizes = range(1, MOST)
        found = bisect_left(sizes, True, key=lambda size: self.attained(size) >= 100 * ATTAINED)
        if found == len(sizes):
            raise Unmeasured(f"not measured: {sizes[-1]} replicas keep less than {ATTAINED:.0%} of the promises")
        return sizes[found]

    def _fleet(self, least: int, most: int) -> Fleet:
        return Fleet(Plans("chat", 1, (least, most), PROMISES, self._rates), self._requests)

    def _all_knowing(self, part: float) -> AllKnowing:
        plans = Plans("chat", 1, (1, self.gpus), PROMISES, self._rates)
        return AllKnowing(plans, self._requests, self._needs, part)

    def _goodput(self, found: Result, gpus: int) -> float:
        return (found.jobs["goodput_pct"] or 0.0) / 100 * gpus * self._until_s / 3600


def lending(options: Options) -> Measured:
    """Per cent by which more is trained on the one cluster than on the two."""
    contest = Contest(*_load(options))
    apart, (together, found) = contest.apart(contest.fewest), contest.together()
    also = {
        "fixed_replicas": contest.fewest,
        "mean_replicas": found.services["chat"]["mean_replicas"] or 0.0,
        "starts": found.services["chat"]["starts"] or 0.0,
        "preemptions": found.jobs["preemptions"] or 0.0,
        "goodput_h": together.goodput,
        "attained": together.attained,
        "attained_gain": together.attained - apart.attained,
    }
    bound = contest.bound()
    also |= {"bound": 100 * (bound.goodput / apart.goodput - 1), "bound_attained": bound.attained}
    splits = {share: contest.apart(round(contest.gpus * share / 100)) for share in SHARES}
    for share, split in splits.items():
        also |= {f"split_{share}_goodput_h": split.goodput, f"split_{share}_attained": split.attained}
    gain = 100 * (together.goodput / apart.goodput - 1)
    return Measured(gain, why=_said(together, contest.gpus, splits, bound), also=also)


def _said(together: Outcome, gpus: int, splits: Mapping[int, Outcome], bound: Outcome) -> str:
    others = ", ".join(f"{share} %: {one.goodput:.0f} h and {one.attained:.2f} %" for share, one in splits.items())
    return (
        f"{gpus} GPUs: {together.goodput:.0f} GPU hours trained and {together.attained:.2f} % of the promises kept; "
        f"who knows what will come: {bound.goodput:.0f} h and {bound.attained:.2f} %; "
        f"apart, with so many of the GPUs serving, {others}"
    )


def _attained(found: Result) -> float:
    return found.services["chat"]["attained_pct"] or 0.0


def _load(options: Options) -> tuple[list[Request], float]:
    """The requests, and for how many hours they come."""
    hours = QUICK_HOURS if options.quick else HOURS
    trace = read_requests(options.file(TRACE)).rows
    return tiled(trace, 3600 * hours, SWING, np.random.default_rng(SEED)), hours


def _jobs(most: int) -> list[TraceJob]:
    """As much work as ever, for jobs that can have no more than ``most`` GPUs."""
    gpus = min(LARGEST, most)
    return [
        TraceJob(f"job-{number}", 0.0, JOB_S * LARGEST / gpus, gpus, f"team-{number % TEAMS}", "train", 1)
        for number in range(JOBS)
    ]


def _needs(requests: Sequence[Request], rates: Rates, until_s: float) -> npt.NDArray[np.float64]:
    """Replicas that are full in each second if no request waits."""
    mean = Traffic(0.0, fmean(request.prompt for request in requests), fmean(request.answer for request in requests))
    places = slots(PROMISES, mean, rates)
    token_s = rates.service_s(mean, places) / mean.answer
    begins = np.array([request.at_s for request in requests])
    takes = [request.prompt / rates.prompt_tokens_per_s + request.answer * token_s for request in requests]
    changes = np.zeros(int(until_s) + 2)
    np.add.at(changes, begins.astype(int), 1.0)
    np.add.at(changes, np.minimum((begins + takes).astype(int) + 1, len(changes) - 1), -1.0)
    return np.cumsum(changes) / places


def _rates(requests: Sequence[Request]) -> Rates:
    """What a replica does, by the model of capacity: 32 B parameters in bf16 on one A100, as many sequences as fit."""
    shape, kind = shape_of_size("32B"), KINDS["A100"]
    prompt = round(fmean(request.prompt for request in requests))
    context = prompt + fmean(request.answer for request in requests) / 2
    fits = (
        n
        for n in range(1, MOST_SEQUENCES)
        if serving_memory(shape, n, round(context), NUMBER, 1).total <= kind.memory_bytes * USABLE
    )
    most = max(fits, default=1)
    one, all_of_them = (token_seconds(shape, n, context, kind) for n in (1, most))
    each_s = (all_of_them - one) / max(most - 1, 1)
    return Rates(prompt / prompt_seconds(shape, prompt, kind), one - each_s, each_s, most, START_S)
