"""``tick_cold`` and ``tick_warm``: one plan for 10,000 nodes, 1,000 gangs that run and 100,000 jobs that wait.

The nodes have 8 GPUs; four in five run a whole-node gang's bundle each, so that a thousand gangs of eight nodes hold
8,000 nodes and every waiting job that needs more nodes than are left has to wait. Cold is the first plan, without a
memo; warm is the next, after one gang has ended and one job was submitted.
"""

from __future__ import annotations

import time
from dataclasses import replace

from benchmarks.rows import Measured, Options
from llmos.core.plan import plan
from llmos.core.types import Attempt, AttemptPhase, Desired, Gang, Job, Node, Plan, Resources, Snapshot, Verb

NODES, RUNNING, PENDING = 10_000, 1_000, 100_000
QUICK = 10
"""One in so many of everything with --quick."""
PER_NODE = Resources(cpus=96, gpus=8, memory_bytes=2**40)
BUNDLE = Resources(cpus=8, gpus=8)
SIZES = (2001, 8, 1, 4)
"""Nodes that waiting jobs ask for, by turns. The first never fits while the others run, and holds up its queue."""
TIMES = 5


def tick_cold(options: Options) -> Measured:
    """Seconds of the first plan."""
    desired, snapshot = _cluster(QUICK if options.quick else 1)
    _, took_s = _timed(desired, snapshot, None)
    return Measured(took_s, why=_said(desired, snapshot))


def tick_warm(options: Options) -> Measured:
    """Milliseconds of a later plan: the median of five, each after a gang has ended and a job has come."""
    desired, snapshot = _cluster(QUICK if options.quick else 1)
    made, _ = _timed(desired, snapshot, None)
    took_ms = []
    for number in range(TIMES):
        desired, snapshot = _next(desired, snapshot, made, number)
        made, took_s = _timed(desired, snapshot, made.memo)
        took_ms.append(1000 * took_s)
    return Measured(sorted(took_ms)[TIMES // 2], why=f"{_said(desired, snapshot)}; the slowest {max(took_ms):.0f} ms")


def _cluster(part: int) -> tuple[Desired, Snapshot]:
    """All of it, or one in ``part``."""
    nodes = tuple(Node(f"node-{i}", PER_NODE) for i in range(NODES // part))
    gang = Gang((BUNDLE,) * 8)
    placements = [tuple(node.id for node in nodes[8 * i : 8 * i + 8]) for i in range(RUNNING // part)]
    running = [
        Job(f"run-{i}", gang, float(i), attempt=1, attempts=1, placement=placement)
        for i, placement in enumerate(placements)
    ]
    gangs = [Gang((BUNDLE,) * (-(-size // part) if size > 8 else size)) for size in SIZES]
    pending = [Job(f"job-{i}", gangs[i % len(gangs)], 1e6 + i) for i in range(PENDING // part)]
    attempts = {job.id: Attempt(job.id, 1, AttemptPhase.RUNNING, nodes=job.placement) for job in running}
    return Desired((*running, *pending)), Snapshot(2e6, nodes, attempts)


def _next(desired: Desired, snapshot: Snapshot, made: Plan, number: int) -> tuple[Desired, Snapshot]:
    """A tick later: what was started runs, the first gang has ended and is recorded, a new job has come."""
    starts = {action.id: action for action in made.actions if action.verb is Verb.START}
    attempts = dict(snapshot.attempts)
    jobs = []
    for job in desired.jobs[1:]:
        if action := starts.get(job.id):
            attempts[job.id] = Attempt(job.id, action.attempt, AttemptPhase.RUNNING, nodes=action.nodes)
            job = replace(job, attempt=action.attempt, attempts=action.attempt, placement=action.nodes)
        jobs.append(job)
    attempts.pop(desired.jobs[0].id, None)
    jobs.append(Job(f"new-{number}", jobs[-1].gang, snapshot.now + number))
    return Desired(tuple(jobs)), Snapshot(snapshot.now + 10, snapshot.nodes, attempts)


def _timed(desired: Desired, snapshot: Snapshot, memo: object) -> tuple[Plan, float]:
    began = time.perf_counter()
    made = plan(desired, snapshot, memo)
    assert len(made.estimates) <= desired.tried and next(iter(made.waiting.values()))  # written out when they are read
    return made, time.perf_counter() - began


def _said(desired: Desired, snapshot: Snapshot) -> str:
    waiting = len(desired.jobs) - len(snapshot.attempts)
    return f"{len(snapshot.nodes)} nodes, {len(snapshot.attempts)} running, {waiting} waiting"
