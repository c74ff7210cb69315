"""What ``plan`` is told: what people asked for, from the store, and what was learned about it while it ran.

What is learned of run times, failures and usage is kept up from the plan's own actions: the store is gone through once,
when the control module starts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping

from llmos.control.progress import Progress
from llmos.control.store import Store
from llmos.control.usage import UsageBook
from llmos.core.dependencies import dependent
from llmos.core.promises import Promises
from llmos.core.quarantine import WINDOW_S
from llmos.core.run_times import RunTimes
from llmos.core.types import Action, AttemptPhase, Desired, Failure, Job, JobPhase, Order, Snapshot, Verb
from llmos.layout import Layout

RUN_TIMES = 20_000
"""So many of the jobs that succeeded last are read at the start; of each kind fewer are remembered anyway."""
FAILURES = 1000
"""So many failures are remembered; none for longer than they count."""
REVISE_EVERY_S = 60.0
"""How often what is expected of jobs that wait follows what was learned: ``plan`` looks anew at each that changes."""
PROMISE_EVERY_S = 10.0
"""How often the estimated starts of jobs that wait are noted, to see later how good they were: they cost some time."""


class Knowledge:
    """What people asked for, as ``plan`` wants it, and in which ``order``. One thread reads and notes; ``usage`` is for
    all."""

    def __init__(self, store: Store, layout: Layout, order: Order = Order.FIFO) -> None:
        self.usage = UsageBook(store)
        self.progress = Progress(layout)
        self.promises = Promises()
        self._promised_at = 0.0
        self._order = order
        self._store = store
        self._run_times = RunTimes()
        for tenant, name, run_s in store.jobs.run_times(RUN_TIMES):
            self._run_times.add(tenant, name, run_s)
        self._failures = deque(store.jobs.failures(FAILURES), maxlen=FAILURES)
        self._known: dict[str, tuple[Job, Job]] = {}  # as it is stored, and with what is expected of it
        self._stored: tuple[Job, ...] = ()
        self._jobs: tuple[Job, ...] = ()
        self._learned = False
        self._revised_at = 0.0

    def desired(self, now: float) -> Desired:
        """What is desired at about ``now``, without services. Jobs about which nothing has changed are the very same
        values as before."""
        self._read(now)
        failures = tuple(failure for failure in self._failures if now - failure.at < WINDOW_S)
        return Desired(
            self._jobs,
            tenants=self.usage.tenants(now),
            ended=self._ended(),
            failures=failures,
            order=self._order,
            caution=self.promises.caution,
        )

    def promise(self, actions: Iterable[Action], estimates: Mapping[str, tuple[float, float]], now: float) -> None:
        """Note what a plan says about who starts when, and what became of what was said before: ``caution`` follows."""
        self.promises.pass_to(now)
        for action in actions:
            if action.verb is Verb.START:
                self.promises.began(action.id)
            elif action.verb is Verb.CLOSE:
                self.promises.forget(action.id)
        if now - self._promised_at >= PROMISE_EVERY_S:
            self._promised_at = now
            for id, (_, late) in estimates.items():
                self.promises.tell(id, late)

    def note(self, actions: Iterable[Action], jobs: Iterable[Job], snapshot: Snapshot, blamed: Collection[str]) -> None:
        """Learn from a plan's ``actions`` for ``jobs``, once they are recorded. ``blamed``: as the store is told."""
        self.usage.add(jobs, snapshot)
        closed = {action.id: action for action in actions if action.verb is Verb.CLOSE}
        if not closed:
            return
        for job in jobs:
            if action := closed.get(job.id):
                self.progress.forget(job.id)
                if action.phase is JobPhase.SUCCEEDED:
                    run_s = job.run_s + snapshot.now - job.opened_at
                    self._run_times.add(job.tenant, _name(job), run_s)
                    self._learned = True
                if job.id in blamed:
                    self._failures.append(Failure(snapshot.now, job.id, job.placement))

    def _read(self, now: float) -> None:
        """Bring ``_jobs`` up to date: the same tuple if nothing has changed."""
        stored, revise = self._store.jobs.unfinished(), self._learned and now - self._revised_at >= REVISE_EVERY_S
        if revise:
            self._learned, self._revised_at = False, now
        if revise or stored is not self._stored:
            self._known = {job.id: self._expected(job, self._known.get(job.id), revise) for job in stored}
            self._stored = stored
        told = [self.progress.told(job, now) if job.attempt else job for _, job in self._known.values()]
        if len(told) != len(self._jobs) or any(a is not b for a, b in zip(told, self._jobs, strict=True)):
            self._jobs = tuple(told)

    def _expected(self, job: Job, before: tuple[Job, Job] | None, revise: bool) -> tuple[Job, Job]:
        """``job``, and the same with how long it likely runs, unless it says so itself."""
        same = before is not None and before[0] is job
        if before and same and not revise:
            return before
        found = None if job.estimate_s is not None else self._run_times.estimate(job.tenant, _name(job))
        if found is None:
            return job, job
        if before and same and (before[1].estimate_s, before[1].estimate_high_s) == found:
            return before
        return job, job.but(estimate_s=found[0], estimate_high_s=found[1])

    def _ended(self) -> dict[str, JobPhase]:
        """The phases of those that others come after and that have ended."""
        wanted = {id for job in self._jobs if dependent(job) for id in job.after}
        return self._store.jobs.ended(wanted - self._known.keys()) if wanted else {}


def blamed(actions: Iterable[Action], snapshot: Snapshot) -> set[str]:
    """The jobs whose attempt failed in a way that may be its nodes' fault: not what would fail anywhere."""
    bad = (AttemptPhase.FAILED, AttemptPhase.LOST)
    failed = [action.id for action in actions if action.verb is Verb.CLOSE and action.failed]
    return {id for id in failed if (seen := snapshot.attempts.get(id)) and seen.phase in bad and seen.retry}


def _name(job: Job) -> str:
    """What jobs of one kind have in common."""
    return job.id.rpartition("-")[0]
