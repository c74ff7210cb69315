"""Plans of worlds that differ in one thing from the one there is: would a job start in them?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from llmos.core.plan import plan
from llmos.core.types import Attempt, AttemptPhase, Desired, Job, Node, Plan, Snapshot, Verb

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """What ``plan`` is asked about."""

    desired: Desired
    snapshot: Snapshot

    def with_job(self, job: Job) -> World:
        """``job`` in the place of the one that has its id."""
        jobs = tuple(job if one.id == job.id else one for one in self.desired.jobs)
        return replace(self, desired=replace(self.desired, jobs=jobs))

    def without(self, ids: Collection[str]) -> World:
        """The jobs ``ids`` have ended."""
        jobs = tuple(job for job in self.desired.jobs if job.id not in ids)
        attempts = {id: attempt for id, attempt in self.snapshot.attempts.items() if id not in ids}
        return World(replace(self.desired, jobs=jobs), replace(self.snapshot, attempts=attempts))

    def stopped(self, ids: Collection[str]) -> World:
        """The attempts of ``ids`` have ended, as they were asked to: those jobs wait again, unless they were
        cancelled."""
        attempts = {id: _yielded(attempt) if id in ids else attempt for id, attempt in self.snapshot.attempts.items()}
        cancelled = {job.id for job in self.desired.jobs if job.cancelled and job.id in ids}
        return replace(self, snapshot=replace(self.snapshot, attempts=attempts)).without(cancelled)

    def with_nodes(self, nodes: Iterable[Node]) -> World:
        """These nodes instead of those there are."""
        return replace(self, snapshot=replace(self.snapshot, nodes=tuple(nodes)))


class Trials:
    """Tries ``most`` worlds at most: ``made`` counts them, ``spent`` says whether there were more to try.

    ``memo`` is that of a plan of the world that they differ from.
    """

    def __init__(self, job: str, world: World, memo: object, most: int) -> None:
        self.made = 0
        self.spent = False
        self._job = job
        self._memo = memo
        self._most = most
        base = plan(world.desired, world.snapshot, memo)
        self._stops = _stops(base)

    def starts(self, world: World) -> tuple[str, ...] | None:
        """The jobs that would have to end first so that the job starts: none, if it does at once. None: it would not
        start, or that could not be tried any more."""
        made = self._plan(world)
        if made is None or _started(made, self._job):
            return None if made is None else ()
        ending = _stops(made) - self._stops - {self._job}
        later = self._plan(world.stopped(ending)) if ending else None
        return tuple(sorted(ending)) if later and _started(later, self._job) else None

    def best(self, choices: Sequence[T], world: Callable[[T], World]) -> tuple[T, tuple[str, ...]] | None:
        """The first of ``choices``, each of which helps less than the next, that would let the job start, and who
        would have to end."""
        if not choices or (found := self.starts(world(choices[-1]))) is None:
            return None
        low, high = -1, len(choices) - 1
        while high - low > 1 and not self.spent:
            middle = (low + high) // 2
            tried = self.starts(world(choices[middle]))
            if tried is None:
                low = middle
            else:
                high, found = middle, tried
        return choices[high], found

    def _plan(self, world: World) -> Plan | None:
        self.spent = self.spent or self.made >= self._most
        if self.spent:
            return None
        self.made += 1
        return plan(world.desired, world.snapshot, self._memo)


def _started(made: Plan, id: str) -> bool:
    return any(action.verb is Verb.START and action.id == id for action in made.actions)


def _stops(made: Plan) -> set[str]:
    return {action.id for action in made.actions if action.verb is Verb.STOP}


def _yielded(attempt: Attempt) -> Attempt:
    return replace(attempt, phase=AttemptPhase.YIELDED, error="") if attempt.alive else attempt
