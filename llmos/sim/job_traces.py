"""Traces of jobs: read from a CSV file, or made up from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmos.sim.tables import Fields, Malformed, Table, read_csv

DAY_S = 86_400.0
JOBS, DAYS, GPUS = 80_000, 120.0, 512
"""Of a trace that is made up, unless others are asked for."""
SIZES = {1: 0.93, 2: 0.02, 4: 0.02, 8: 0.02, 3: 0.0035, 6: 0.003, 16: 0.002, 32: 0.001, 64: 0.0005}
"""GPUs of a job → how often. What 1, 2, 4, 8 and the gangs of 16 and more leave is given to 3 and 6."""
USERS = 200
KINDS = 4
"""Kinds of job that one user submits: a user's jobs of one kind take about as long as one another."""
SPREAD_OF_USERS, SPREAD_OF_KINDS, SPREAD_OF_JOBS = 1.5, 1.0, 0.5
"""Standard deviations of the logarithm of the duration: log-normal in all, of 1.87 in all."""
DAILY_SWING = 0.6
"""By how much the rate of arrivals swings around its mean in the course of a day."""
LONGEST_S = 14 * DAY_S
SHORTEST_S = 10.0
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TraceJob:
    """A job of a trace: when it was submitted, how long it runs, on how many GPUs, whose it is and of what kind.

    ``fewest`` is how many GPUs it can run on at least, more slowly in proportion; 0: it needs them all.
    """

    id: str
    submitted_s: float
    run_s: float
    gpus: int
    tenant: str
    kind: str
    fewest: int = 0


def read_jobs(path: Path, *, skip_bad_rows: bool = False) -> Table[TraceJob]:
    """The jobs in the CSV file at ``path`` with the columns ``timestamp,duration,num_gpus,gpu_time,cluster``, by time.

    Times are seconds, or dates as in ``2020-04-01 00:00:00``. The columns ``user`` and ``kind`` may be there, too;
    without them a tenant is a ``cluster`` and a kind is a number of GPUs. Raises NotFoundError, DataError.
    """
    table = read_csv(path, ("timestamp", "duration", "num_gpus"), _job, skip_bad_rows=skip_bad_rows)
    ordered = sorted(table.rows, key=lambda job: job.submitted_s)
    return Table(tuple(_named(number, job) for number, job in enumerate(ordered)), table.bad)


def _job(row: Fields) -> TraceJob:
    gpus = row.whole("num_gpus", most=1_000_000)
    row.number("gpu_time", 0.0)  # follows from the others; what is no number is malformed all the same
    tenant = row.text("user") or row.text("cluster") or "default"
    return TraceJob("", _moment(row), row.number("duration"), gpus, tenant, row.text("kind") or str(gpus))


def _named(number: int, job: TraceJob) -> TraceJob:
    return TraceJob(f"job-{number}", job.submitted_s, job.run_s, job.gpus, job.tenant, job.kind)


def _moment(row: Fields) -> float:
    """``timestamp`` in seconds. Raises Malformed."""
    text = row.text("timestamp")
    try:
        return row.number("timestamp")
    except Malformed:
        try:
            return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
        except ValueError:
            raise Malformed(f"timestamp is {text[:40]!r}: expected seconds or a date and time") from None


def generate(seed: int, *, jobs: int = JOBS, days: float = DAYS, gpus: int = GPUS, load: float = 0.9) -> list[TraceJob]:
    """``jobs`` jobs of ``days`` days that ask for ``load`` of what ``gpus`` GPUs can do in that time, by time.

    Arrivals are Poisson with a daily cycle, sizes as in SIZES. Durations are log-normal: each user has a scale of
    their own, each of their kinds of job another on top, and a job differs little from others of its kind, so that
    what a user did before tells how long the next will take. How active users are falls off as Zipf's law says.
    """
    rng = np.random.default_rng(seed)
    users = rng.choice(USERS, jobs, p=_zipf(USERS))
    kinds = rng.choice(KINDS, jobs, p=_zipf(KINDS))
    sizes = _sizes(rng, jobs)
    scale = rng.normal(0, SPREAD_OF_USERS, USERS)[users] + rng.normal(0, SPREAD_OF_KINDS, (USERS, KINDS))[users, kinds]
    durations = np.exp(scale + rng.normal(0, SPREAD_OF_JOBS, jobs))
    durations = _stretched(durations, sizes, load * gpus * days * DAY_S)
    times = _arrivals(rng, jobs, days)
    return [
        TraceJob(
            f"job-{i}", float(times[i]), float(durations[i]), int(sizes[i]), f"user-{users[i]}", f"kind-{kinds[i]}"
        )
        for i in range(jobs)
    ]


def _zipf(count: int) -> Floats:
    weights = 1 / np.arange(1, count + 1)
    shares: Floats = weights / weights.sum()
    return shares


def _sizes(rng: np.random.Generator, jobs: int) -> npt.NDArray[np.int64]:
    shares = np.array(list(SIZES.values()))
    return rng.choice(list(SIZES), jobs, p=shares / shares.sum())


def _stretched(durations: Floats, sizes: npt.NDArray[np.int64], gpu_s: float) -> Floats:
    """``durations`` times a factor such that all jobs together take ``gpu_s`` GPU-seconds, within their bounds."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        bounded = np.clip(durations * math.exp(middle), SHORTEST_S, LONGEST_S)
        low, high = (middle, high) if bounded @ sizes < gpu_s else (low, middle)
    return np.clip(durations * math.exp(low), SHORTEST_S, LONGEST_S)


def _arrivals(rng: np.random.Generator, jobs: int, days: float) -> Floats:
    """Moments in order: uniform over the time, then thinned at night and more frequent by day."""
    grid = np.linspace(0, days * DAY_S, int(days * 96) + 1)
    passed = grid - DAILY_SWING * DAY_S / (2 * math.pi) * np.sin(2 * math.pi * grid / DAY_S)  # the rate's integral
    return np.interp(np.sort(rng.uniform(0, passed[-1], jobs)), passed, grid)
