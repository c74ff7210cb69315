"""Replays a trace of jobs in virtual time, from event to event, under a policy that says who runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Protocol

from llmos.core.run_times import RunTimes
from llmos.errors import UsageError
from llmos.sim.faults import Fate, Faults
from llmos.sim.job_traces import TraceJob
from llmos.sim.pool import Placement, Pool

UNKNOWN_S = 3600.0
"""Estimate of a run time before any job has ended."""
RESTART_S = 60.0
"""What it costs to go on elsewhere after a preemption: to start again and to load the checkpoint it was ended with."""
_SMOOTH = Fate()


@dataclass(slots=True, eq=False)
class Run:
    """A job on its way. Times are seconds; ``done_s`` of ``job.run_s`` are done, as of ``since_s`` when it runs. It was
    started at ``started_s``. A second of running is ``speed`` seconds of work, less than one on fewer GPUs than it has
    at most; it works for ``works_s`` at most, if it is going to get stuck.

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
    started_s: float = 0.0
    since_s: float = 0.0
    works_s: float = inf
    done_s: float = 0.0
    attempts: int = 0
    speed: float = 1.0

    def done(self, now: float) -> float:
        """Seconds of its work that are done at ``now``."""
        if self.placement is None or now <= self.since_s:
            return self.done_s
        return self.done_s + min(now - self.since_s, self.works_s) * self.speed

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

    def failed(self, run: Run) -> None:
        """``run`` has failed, its GPUs are free, and it waits again."""

    def lost(self, node: int, world: World) -> None:
        """``node`` is gone, and so are the runs on it."""

    def decide(self, world: World) -> float:
        """Start and preempt. Returns when to ask again even if nothing happens."""


class Queueing(ABC):
    """What policies have in common that queue jobs and know nothing of nodes."""

    @abstractmethod
    def arrived(self, run: Run) -> None:
        """See Policy."""

    def ended(self, run: Run) -> None:
        """See Policy. Who runs is read from the world."""
        del run

    def failed(self, run: Run) -> None:
        """See Policy. It queues again."""
        self.arrived(run)

    def lost(self, node: int, world: World) -> None:
        """See Policy. Nothing of a queue is on a node."""
        del node, world


class World:
    """The cluster and the clock of one replay, as a policy sees and changes them. ``down`` are nodes that are gone."""

    def __init__(self, pool: Pool, restart_s: float = RESTART_S, faults: Faults | None = None) -> None:
        self.now = self._began = 0.0
        self.pool = pool
        self.running: dict[str, Run] = {}
        self.waiting = 0
        self.stays: list[Stay] = []
        self.down: set[int] = set()
        self.preemptions = self.failures = self.given_up = 0
        self.lost_gpu_s = 0.0
        self.used_gpu_s = 0.0
        self.idle_gpu_s = 0.0
        self._restart_s = restart_s
        self._faults = None if faults is None or faults.none else faults
        self._ends: list[tuple[float, int, Run, int, bool]] = []
        self._starts = 0
        self._changes: list[tuple[float, int, bool]] = []
        self._outages: Iterator[tuple[float, int]] = self._faults.outages(len(pool.free)) if self._faults else iter(())

    def begin(self, now: float) -> None:
        """It is ``now``, and everything begins."""
        self.now = self._began = now
        self._next_outage()

    def start(self, run: Run, placement: Placement | None = None) -> bool:
        """Start ``run``, on ``placement`` if it is given, if there is room."""
        if placement is None:
            placement = self.pool.place(run.job.gpus)
            if placement is None:
                return False
        else:
            self.pool.take(placement)
        held = sum(gpus for _, gpus in placement)
        fate = self._faults.fate(run.job.id, run.attempts + 1) if self._faults else _SMOOTH
        run.speed = held / run.job.gpus * fate.speed if run.job.gpus else fate.speed
        delay = fate.launch_s + (self._restart_s if run.attempts else 0.0)
        self.lost_gpu_s += delay * held
        run.placement, run.started_s, run.since_s, run.works_s = placement, self.now, self.now + delay, fate.works_s
        run.begun_s = self.now if run.begun_s is None else run.begun_s
        run.attempts += 1
        self._starts += 1
        self.running[run.job.id] = run
        self.waiting -= 1
        takes_s = (run.job.run_s - run.done_s) / run.speed
        fails = takes_s > fate.works_s
        end = run.since_s + (fate.works_s + fate.found_s if fails else takes_s)
        heappush(self._ends, (end, self._starts, run, run.attempts, fails))
        return True

    def preempt(self, run: Run) -> None:
        """End ``run`` with a checkpoint: it waits again, with its work."""
        run.done_s = run.done(self.now)
        self._leave(run)
        self.waiting += 1
        self.preemptions += 1

    def give_up(self, run: Run) -> None:
        """``run``, which waits, is not tried again."""
        del run
        self.waiting -= 1
        self.given_up += 1

    def next_end(self) -> float:
        """When the next run ends."""
        while self._ends and not self._current(self._ends[0]):
            heappop(self._ends)
        return self._ends[0][0] if self._ends else inf

    def end_next(self) -> Run:
        """End the run that :meth:`next_end` is about. It has failed if it has no ``ended_s`` then."""
        _, _, run, _, fails = heappop(self._ends)
        if fails:
            self._fail(run)
        else:
            run.done_s, run.ended_s = run.job.run_s, self.now
            self._leave(run)
        return run

    def next_change(self) -> float:
        """When the next node is lost or comes back."""
        return self._changes[0][0] if self._changes else inf

    def change(self, policy: Policy) -> None:
        """Let happen what :meth:`next_change` is about."""
        _, node, comes = heappop(self._changes)
        whole = ((node, self.pool.per_node),)
        if comes:
            self.pool.give_back(whole)
            self.down.discard(node)
            return
        self._next_outage()
        if self._faults and node not in self.down:
            for run in [run for run in self.running.values() if node in dict(run.placement or ())]:
                self._fail(run)
                policy.failed(run)
            policy.lost(node, self)
            self.pool.take(whole)
            self.down.add(node)
            heappush(self._changes, (self.now + self._faults.repair_s, node, True))

    def advance(self, to: float) -> None:
        """Let time pass until ``to``, in which nothing starts or ends."""
        gone = len(self.down) * self.pool.per_node
        self.used_gpu_s += (to - self.now) * (self.pool.total - self.pool.idle - gone)
        if self.waiting:
            self.idle_gpu_s += (to - self.now) * self.pool.idle
        self.now = to

    def _next_outage(self) -> None:
        if outage := next(self._outages, None):
            heappush(self._changes, (self._began + outage[0], outage[1], False))

    def _fail(self, run: Run) -> None:
        """``run`` ends here, and waits again with what its last checkpoint has of its work."""
        every = self._faults.checkpoint_s if self._faults else 1.0
        kept = (run.done(self.now) - run.done_s) // every * every
        self.lost_gpu_s += (self.now - run.since_s) * sum(gpus for _, gpus in run.placement or ())
        self.lost_gpu_s -= kept * run.job.gpus
        run.done_s += kept
        self._leave(run)
        self.waiting += 1
        self.failures += 1

    def _current(self, entry: tuple[float, int, Run, int, bool]) -> bool:
        _, _, run, attempt, _ = entry
        return run.placement is not None and run.attempts == attempt

    def _leave(self, run: Run) -> None:
        assert run.placement is not None, f"{run.job.id} does not run"
        self.pool.give_back(run.placement)
        if run.placement:
            self.stays.append(Stay(run.job.tenant, run.placement, run.started_s, self.now))
        run.placement = None
        del self.running[run.job.id]


def replay(
    jobs: Sequence[TraceJob], world: World, policy: Policy, *, all_knowing: bool = False, until_s: float = inf
) -> list[Run]:
    """Let ``jobs``, in the order of their submission, come into ``world``, until all have ended, or until ``until_s``.

    Estimates are learned from the jobs that have ended; ``all_knowing`` ones are the truth. Raises UsageError for a job
    that the cluster can never hold.
    """
    _check(jobs, world.pool)
    runs: list[Run] = []
    known = RunTimes()
    world.begin(jobs[0].submitted_s if jobs and until_s == inf else 0.0)
    again = world.now
    while world.now < until_s and (len(runs) < len(jobs) or world.running or world.waiting or until_s < inf):
        coming = jobs[len(runs)].submitted_s if len(runs) < len(jobs) else inf
        world.advance(min(coming, world.next_end(), world.next_change(), max(again, world.now), until_s))
        while world.next_end() <= world.now:
            run = world.end_next()
            if run.ended_s is None:
                policy.failed(run)
            else:
                known.add(run.job.tenant, run.job.kind, run.job.run_s)
                policy.ended(run)
        while world.next_change() <= world.now:
            world.change(policy)
        while len(runs) < len(jobs) and jobs[len(runs)].submitted_s <= world.now:
            runs.append(_submitted(jobs[len(runs)], None if all_knowing else known))
            world.waiting += 1
            policy.arrived(runs[-1])
        again = policy.decide(world)
    return runs


def _check(jobs: Sequence[TraceJob], pool: Pool) -> None:
    """Raises UsageError for jobs that are too large."""
    if too_large := [job for job in jobs if job.gpus > pool.total]:
        first = too_large[0]
        raise UsageError(
            f"{len(too_large)} jobs are larger than the cluster: {first.id} needs {first.gpus} GPUs, "
            f"there are {pool.total}",
            param="--gpus",
        )


def _submitted(job: TraceJob, known: RunTimes | None) -> Run:
    if known is None:
        return Run(job, job.run_s, job.run_s)
    median_s, high_s = known.estimate(job.tenant, job.kind) or (UNKNOWN_S, UNKNOWN_S)
    return Run(job, median_s, high_s)
