"""Which jobs a plan must look at, and the long queue of those that only wait.

A job that has no attempt open, was not cancelled, has no retry to wait for and comes after no other can only wait for
its turn, whatever the cluster does. There may be 100,000 of them, and most are the very values of the last tick: they
are sorted once, and afterwards only what came and went is.
"""

from __future__ import annotations

import operator
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

from llmos.core.queues import Entry, entry
from llmos.core.types import Job

_FEW = 64
"""So many entries are put into a sorted list one by one; more are sorted in."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """``watched`` are the jobs to look at; ``queues`` those that only wait, by tenant, in order."""

    jobs: tuple[Job, ...] = ()
    watched: tuple[Job, ...] = ()
    queues: Mapping[str, list[Entry]] = field(default_factory=dict)


def sorted_out(jobs: tuple[Job, ...], before: Backlog | None = None) -> Backlog:
    """The backlog of ``jobs``. ``before`` is that of the last tick: it saves work."""
    before = before or Backlog()
    if before.jobs is jobs:
        return before
    added, gone = _changes(before.jobs, jobs)
    if len(added) * 4 > len(jobs):
        before, added, gone = Backlog(), jobs, []
    left = {id(job) for job in gone}
    queues = dict(before.queues)
    for tenant in {job.tenant for job in gone} & queues.keys():
        queues[tenant] = [one for one in queues[tenant] if id(one[-1]) not in left]
    _merge(queues, (job for job in added if _only_waits(job)))
    watched = [job for job in before.watched if id(job) not in left] + [job for job in added if not _only_waits(job)]
    watched.sort(key=lambda job: (job.submitted_at, job.id))  # the same in whatever order they came to be known
    return Backlog(jobs, tuple(watched), {tenant: queue for tenant, queue in queues.items() if queue})


def _changes(before: tuple[Job, ...], jobs: tuple[Job, ...]) -> tuple[Sequence[Job], Sequence[Job]]:
    """The values of ``jobs`` that were not there before, and those from before that are not there any more."""
    common = min(len(before), len(jobs))
    differ = list(compress(range(common), map(operator.is_not, before, jobs)))
    if len(differ) * 4 > common:  # they have moved up
        olds, news = before, jobs
    else:
        olds = tuple(before[i] for i in differ) + before[common:]
        news = tuple(jobs[i] for i in differ) + jobs[common:]
    known, here = set(map(id, olds)), set(map(id, news))
    new, gone = here - known, known - here
    return [job for job in news if id(job) in new], [job for job in olds if id(job) in gone]


def _merge(queues: dict[str, list[Entry]], jobs: Iterable[Job]) -> None:
    """Put ``jobs`` into the lists of ``queues``, which are replaced, never changed."""
    more: dict[str, list[Entry]] = {}
    for job in jobs:
        more.setdefault(job.tenant, []).append(entry(job))
    for tenant, entries in more.items():
        queue = list(queues.get(tenant, ()))
        if len(entries) <= _FEW:
            for one in entries:
                insort(queue, one)
        else:
            queue += entries
            queue.sort()
        queues[tenant] = queue


def _only_waits(job: Job) -> bool:
    return not (job.attempt or job.cancelled or job.not_before or job.after) and (
        job.max_runtime_s is None or job.run_s < job.max_runtime_s
    )


class Waiting(Mapping[str, str]):
    """Why each job waits: those that were looked at with a reason, the others with their place in the queue.

    The places of a long queue are not written out before somebody asks for one.
    """

    def __init__(self, told: Mapping[str, str], queues: Mapping[str, list[Entry]], left_out: Iterable[str]) -> None:
        self._told = told
        self._queues = queues
        self._left_out = frozenset(left_out)
        self._places: dict[str, tuple[int, str]] | None = None

    def __getitem__(self, id: str) -> str:
        if id in self._told:
            return self._told[id]
        place, tenant = self._all_places()[id]
        return f"place {place:,} in the queue" + (f" of tenant {tenant}" if len(self._queues) > 1 else "")

    def __iter__(self) -> Iterator[str]:
        yield from self._told
        yield from self._all_places()

    def __len__(self) -> int:
        return len(self._told) + len(self._all_places())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)})"

    def _all_places(self) -> dict[str, tuple[int, str]]:
        if self._places is None:
            self._places = {
                one[-1].id: (place, tenant)
                for tenant, queue in self._queues.items()
                for place, one in enumerate(queue, start=1)
                if one[-1].id not in self._told and one[-1].id not in self._left_out
            }
        return self._places
