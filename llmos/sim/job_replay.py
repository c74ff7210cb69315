"""Replays a trace of jobs in virtual time, from event to event, under a policy that says who runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Protocol

from llmos.core.run_times import RunTimes
from llmos.errors import UsageError
from llmos.sim.job_traces import TraceJob
from llmos.sim.pool import Placement, Pool

UNKNOWN_S = 3600.0
"""Estimate of a run time before any job has ended."""
RESTART_S = 60.0
"""What it costs to go on elsewhere after a preemption: to start again and to load the checkpoint it was ended with."""


@dataclass(slots=True, eq=False)
class Run:
    """A job on its way. Times are seconds; ``done_s`` of ``job.run_s`` are done, as of ``since_s`` when it runs.
    A second of running is ``speed`` seconds of work, less than one on fewer GPUs than it has at most.

    ``median_s`` and ``high_s`` (90 %) estimate ``job.run_s`` from what was known when it was submitted. ``begun_s`` is
    when it first started, ``promised_s`` by when it was to start, with 90 % probability, if that was said.
    """

    job: TraceJob
    median_s: float
    high_s: float
    begun_s: float | None = None
    ended_s: float | None = None
    promised_s: float | None = None
    placement: Placement | None = None
    since_s: float = 0.0
    done_s: float = 0.0
    attempts: int = 0
    speed: float = 1.0

    def done(self, now: float) -> float:
        """Seconds of its work that are done at ``now``."""
        if self.placement is None or now <= self.since_s:
            return self.done_s
        return self.done_s + (now - self.since_s) * self.speed

    def remaining(self, now: float) -> float:
        """Seconds that it is expected to run on: to its median, past that to its 90 % quantile, past that as long as
        it has run."""
        done = self.done(now)
        if done < self.median_s:
            return self.median_s - done
        return self.high_s - done if done < self.high_s else done


@dataclass(frozen=True, slots=True)
class Stay:
    """``tenant`` held ``placement`` from ``start_s`` to ``end_s``: what a picture is made of."""

    tenant: str
    placement: Placement
    start_s: float
    end_s: float


class Policy(Protocol):
    """Who runs. Told of what happens, then asked to decide, once for all that happens at one moment."""

    def arrived(self, run: Run) -> None:
        """``run`` was submitted."""

    def ended(self, run: Run) -> None:
        """``run`` has ended, and its GPUs are free."""

    def decide(self, world: World) -> float:
        """Start and preempt. Returns when to ask again even if nothing happens."""


class World:
    """The cluster and the clock of one replay, as a policy sees and changes them."""

    def __init__(self, pool: Pool, restart_s: float = RESTART_S) -> None:
        self.now = 0.0
        self.pool = pool
        self.running: dict[str, Run] = {}
        self.waiting = 0
        self.stays: list[Stay] = []
        self.preemptions = 0
        self.lost_gpu_s = 0.0
        self.used_gpu_s = 0.0
        self.idle_gpu_s = 0.0
        self._restart_s = restart_s
        self._ends: list[tuple[float, int, Run, int]] = []
        self._starts = 0

    def start(self, run: Run, placement: Placement | None = None) -> bool:
        """Start ``run``, on ``placement`` if it is given, if there is room."""
        if placement is None:
            placement = self.pool.place(run.job.gpus)
            if placement is None:
                return False
        else:
            self.pool.take(placement)
        held = sum(gpus for _, gpus in placement)
        run.speed = held / run.job.gpus if run.job.gpus else 1.0
        delay = self._restart_s if run.attempts else 0.0
        self.lost_gpu_s += delay * held
        run.placement, run.since_s = placement, self.now + delay
        run.begun_s = self.now if run.begun_s is None else run.begun_s
        run.attempts += 1
        self._starts += 1
        self.running[run.job.id] = run
        self.waiting -= 1
        heappush(self._ends, (run.since_s + (run.job.run_s - run.done_s) / run.speed, self._starts, run, run.attempts))
        return True

    def preempt(self, run: Run) -> None:
        """End ``run`` with a checkpoint: it waits again, with its work."""
        run.done_s = run.done(self.now)
        self._leave(run)
        self.waiting += 1
        self.preemptions += 1

    def next_end(self) -> float:
        """When the next run ends."""
        while self._ends and not self._current(self._ends[0]):
            heappop(self._ends)
        return self._ends[0][0] if self._ends else inf

    def end_next(self) -> Run:
        """End the run that :meth:`next_end` is about."""
        _, _, run, _ = heappop(self._ends)
        run.done_s, run.ended_s = run.job.run_s, self.now
        self._leave(run)
        return run

    def advance(self, to: float) -> None:
        """Let time pass until ``to``, in which nothing starts or ends."""
        self.used_gpu_s += (to - self.now) * (self.pool.total - self.pool.idle)
        if self.waiting:
            self.idle_gpu_s += (to - self.now) * self.pool.idle
        self.now = to

    def _current(self, entry: tuple[float, int, Run, int]) -> bool:
        _, _, run, attempt = entry
        return run.placement is not None and run.attempts == attempt

    def _leave(self, run: Run) -> None:
        assert run.placement is not None, f"{run.job.id} does not run"
        self.pool.give_back(run.placement)
        if run.placement:
            start = run.since_s - (self._restart_s if run.attempts > 1 else 0.0)
            self.stays.append(Stay(run.job.tenant, run.placement, start, self.now))
        run.placement = None
        del self.running[run.job.id]


def replay(
    jobs: Sequence[TraceJob], world: World, policy: Policy, *, all_knowing: bool = False, until_s: float = inf
) -> list[Run]:
    """Let ``jobs``, in the order of their submission, come into ``world``, until all have ended, or until ``until_s``.

    Estimates are learned from the jobs that have ended; ``all_knowing`` ones are the truth. Raises UsageError for a job
    that the cluster can never hold.
    """
    if too_large := [job for job in jobs if job.gpus > world.pool.total]:
        first = too_large[0]
        raise UsageError(
            f"{len(too_large)} jobs are larger than the cluster: {first.id} needs {first.gpus} GPUs, "
            f"there are {world.pool.total}",
            param="--gpus",
        )
    runs: list[Run] = []
    known = RunTimes()
    world.now = jobs[0].submitted_s if jobs and until_s == inf else 0.0
    again = world.now
    while world.now < until_s and (len(runs) < len(jobs) or world.running or world.waiting or until_s < inf):
        coming = jobs[len(runs)].submitted_s if len(runs) < len(jobs) else inf
        world.advance(min(coming, world.next_end(), max(again, world.now), until_s))
        while world.next_end() <= world.now:
            run = world.end_next()
            known.add(run.job.tenant, run.job.kind, run.job.run_s)
            policy.ended(run)
        while len(runs) < len(jobs) and jobs[len(runs)].submitted_s <= world.now:
            runs.append(_submitted(jobs[len(runs)], None if all_knowing else known))
            world.waiting += 1
            policy.arrived(runs[-1])
        again = policy.decide(world)
    return runs


def _submitted(job: TraceJob, known: RunTimes | None) -> Run:
    if known is None:
        return Run(job, job.run_s, job.run_s)
    median_s, high_s = known.estimate(job.tenant, job.kind) or (UNKNOWN_S, UNKNOWN_S)
    return Run(job, median_s, high_s)
