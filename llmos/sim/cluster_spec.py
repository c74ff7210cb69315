"""What ``llmos simulate cluster`` is asked: a mapping as YAML gives it, turned into jobs and services.

nodes: 4
per_node: 8
hours: 2
seed: 0
jobs:      {trace: jobs.csv}                # or {count: 20, gpus: 8, fewest: 1, hours: 3}: equal ones, all at once
services:
  - name: chat
    trace: azure_llm_conv.csv               # as long as it lasts, then again
    swing: 0.7                              # at midnight so much less of it comes than at noon; 0: as much
    gpus: 1                                 # of a replica
    replicas: {min: 1, max: 12}
    promises: {first_token_s: 1, token_s: 0.05}
    rates: {prompt_tokens_per_s: 8000, step_s: 0.02, sequence_s: 0.0005, most: 32, start_s: 60}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from llmos.core.replicas import Promises, Rates
from llmos.errors import DataError, SpecError
from llmos.sim.fleet import Fleet, Plans
from llmos.sim.job_traces import TraceJob, read_jobs
from llmos.sim.request_traces import read_requests, tiled
from llmos.sim.section import Section
from llmos.sim.tables import BadRow

TENANTS = 8
"""Whose jobs equal ones are, by turns."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A cluster, how long it is looked at, and what comes to it. ``bad`` are rows of traces that were skipped."""

    nodes: int
    per_node: int
    until_s: float
    jobs: Sequence[TraceJob]
    fleets: Sequence[Fleet]
    bad: tuple[tuple[Path, BadRow], ...] = ()


def read(value: object, directory: Path, *, skip_bad_rows: bool = False) -> Asked:
    """What ``value`` asks for; its paths are relative to ``directory``. Raises SpecError with all that is wrong with
    it, NotFoundError and DataError for its traces."""
    problems: list[str] = []
    known = ("nodes", "per_node", "hours", "seed", "jobs", "services")
    top = Section(value, "spec", known, problems)
    nodes, per_node = top.whole("nodes", 1), top.whole("per_node", 1, 8)
    until_s, seed = 3600 * top.number("hours", 0.01, 24), top.whole("seed", 0, 0)
    equal = ("count", "gpus", "fewest", "hours")
    jobs = top.below("jobs", ("trace", *equal))
    wanted = [_plans(entry, number, problems) for number, entry in enumerate(top.list("services"))]
    made = [] if "trace" in jobs else list(_equal(jobs))
    trace = jobs.text("trace") if "trace" in jobs else ""
    names = [plans.name for plans, _, _ in wanted]
    problems += [f"services: {name} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    if problems:
        raise SpecError(problems)
    bad: list[tuple[Path, BadRow]] = []
    if trace:
        table = read_jobs(directory / trace, skip_bad_rows=skip_bad_rows)
        made = list(table.rows)
        bad += [(directory / trace, row) for row in table.bad]
    rng = np.random.default_rng(seed)
    fleets = [_fleet(*one, directory, until_s, rng, skip_bad_rows, bad) for one in wanted]
    return Asked(nodes, per_node, until_s, made, fleets, tuple(bad))


def _equal(jobs: Section) -> Iterator[TraceJob]:
    """Equal jobs that are all submitted at the beginning."""
    count = jobs.whole("count", 0, 0)
    gpus, run_s = jobs.whole("gpus", 1, 1), 3600 * jobs.number("hours", 0, 1)
    fewest = jobs.whole("fewest", 0, 0)
    if fewest > gpus:
        jobs.problems.append(f"{jobs.where}: fewest is {fewest}, gpus {gpus}: expected no more than gpus")
    for number in range(count):
        yield TraceJob(f"job-{number}", 0.0, run_s, gpus, f"tenant-{number % TENANTS}", "equal", fewest)


def _plans(entry: object, number: int, problems: list[str]) -> tuple[Plans, str, float]:
    """What is asked of one service, its trace, and by how much that swings in the course of a day."""
    known = ("name", "trace", "swing", "gpus", "replicas", "promises", "rates")
    service = Section(entry, f"services[{number}]", known, problems)
    replicas = service.below("replicas", ("min", "max"))
    low = replicas.whole("min", 0, 1)
    high = replicas.whole("max", 1, max(low, 1))
    if low > high:
        problems.append(f"{replicas.where}: min is {low}, max {high}: expected min to be at most max")
    promised = service.below("promises", [field.name for field in fields(Promises)])
    rates = service.below("rates", [field.name for field in fields(Rates)])
    promises = {field.name: promised.number(field.name, 0) for field in fields(Promises) if field.name in promised}
    measured = Rates(
        rates.number("prompt_tokens_per_s", 1e-3),
        rates.number("step_s", 1e-6),
        rates.number("sequence_s", 0, 0),
        rates.whole("most", 1),
        rates.number("start_s", 0),
    )
    plans = Plans(service.text("name"), service.whole("gpus", 1, 1), (low, high), Promises(**promises), measured)
    swing = service.number("swing", 0, 0)
    if swing > 1:
        problems.append(f"{service.where}: swing is {swing:g}: expected at most 1")
    return plans, service.text("trace"), swing


def _fleet(
    plans: Plans,
    trace: str,
    swing: float,
    directory: Path,
    until_s: float,
    rng: np.random.Generator,
    skip_bad_rows: bool,
    bad: list[tuple[Path, BadRow]],
) -> Fleet:
    path = directory / trace
    table = read_requests(path, skip_bad_rows=skip_bad_rows)
    bad += [(path, row) for row in table.bad]
    if not table.rows:
        raise DataError(f"{path} has no requests: expected a trace of some")
    return Fleet(plans, tiled(table.rows, until_s, swing, rng))
