"""``lending``: one cluster whose service lends its idle GPUs to training, beside two clusters of the same size in all.

The load is Azure's conversation trace, again and again for 48 hours, thinned to a daily cycle; what trains are 500
elastic jobs, more than any of the clusters gets done. A replica is a model of 32 B parameters on one A100, as fast as
``core/capacity`` takes it to be. The service of two clusters has a fixed number of replicas, the fewest that keep 99 %
of the promises; the cluster that trains, all the time, is as large. Every start of a replica and every change of a job
is charged.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from benchmarks.rows import Measured, Options, Unmeasured
from llmos.core.capacity import KINDS, USABLE, serving_memory, shape_of_size
from llmos.core.capacity.serving import MOST_SEQUENCES, NUMBER, prompt_seconds, token_seconds
from llmos.core.replicas import ATTAINED, Promises, Rates
from llmos.sim.cluster_twin import Result, twin
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
SHARES = (25, 50, 75)
SEED = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """``attained``: per cent of the requests whose promises were kept. ``goodput``: GPU hours of training that are
    done, without those lost to restarts."""

    attained: float
    goodput: float


class Contest:
    """The same requests and jobs on one cluster of ``gpus`` GPUs, and on two that share them, for ``hours``.

    With half of them, a fixed service keeps its promises just so. Raises Unmeasured if that takes too many.
    """

    def __init__(self, requests: Sequence[Request], hours: float) -> None:
        self._until_s = 3600 * hours
        self._requests = requests
        self._rates = _rates(requests)
        self._apart: dict[int, Outcome] = {}
        self.fewest = self._fewest()
        self.gpus = 2 * self.fewest

    def together(self) -> tuple[Outcome, Result]:
        """On one cluster."""
        found = twin(_jobs(self.gpus), [self._fleet(1, self.gpus)], 2, self.fewest, self._until_s)
        return Outcome(_attained(found), self._goodput(found, self.gpus)), found

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
    splits = {share: contest.apart(round(contest.gpus * share / 100)) for share in SHARES}
    for share, split in splits.items():
        also |= {f"split_{share}_goodput_h": split.goodput, f"split_{share}_attained": split.attained}
    gain = 100 * (together.goodput / apart.goodput - 1)
    return Measured(gain, why=_said(together, contest.gpus, splits), also=also)


def _said(together: Outcome, gpus: int, splits: Mapping[int, Outcome]) -> str:
    others = ", ".join(f"{share} %: {one.goodput:.0f} h and {one.attained:.2f} %" for share, one in splits.items())
    return (
        f"{gpus} GPUs: {together.goodput:.0f} GPU hours trained and {together.attained:.2f} % of the promises kept; "
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
