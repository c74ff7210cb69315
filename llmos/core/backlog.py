"""Which jobs a plan must look at, and the long queue of those that only wait.

A job that has no attempt open, was not cancelled, has no retry to wait for and comes after no other can only wait for
its turn, whatever the cluster does. There may be 100,000 of them, and most are the very values of the last tick: they
are sorted once, and afterwards only what came and went is.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, count

from llmos.core.queues import Entry, entry
from llmos.core.types import Job, Order

_FEW = 64
"""So many changes are found and put into a sorted list one by one; for more, all is looked at."""
_NEAR = 8
"""So many that lie side by side are found at once."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """``watched`` are the jobs to look at, by id; ``queues`` those that only wait, by tenant, in ``order``.

    ``gone`` are the records that were watched in the last tick and are not there any more as they were.
    """

    jobs: tuple[Job, ...] = ()
    watched: Mapping[str, Job] = field(default_factory=dict)
    queues: Mapping[str, list[Entry]] = field(default_factory=dict)
    order: Order = Order.FIFO
    gone: tuple[Job, ...] = ()


def sorted_out(jobs: tuple[Job, ...], before: Backlog | None = None, order: Order = Order.FIFO) -> Backlog:
    """The backlog of ``jobs``. ``before`` is that of the last tick: it saves work."""
    before = before or Backlog(order=order)
    if before.jobs is jobs and before.order is order:
        return replace(before, gone=())
    added, gone = _changes(before.jobs, jobs)
    left = [job for job in gone if not _only_waits(job)]
    if len(added) * 4 > len(jobs) or before.order is not order:
        before, added, gone, left = Backlog(), jobs, (), list(before.watched.values())
    queues, watched = dict(before.queues), dict(before.watched)
    _drop(queues, [job for job in gone if _only_waits(job)], order)
    _merge(queues, (job for job in added if _only_waits(job)), order)
    for job in left:
        watched.pop(job.id, None)
    watched.update((job.id, job) for job in added if not _only_waits(job))
    return Backlog(jobs, watched, {tenant: queue for tenant, queue in queues.items() if queue}, order, tuple(left))


def _changes(before: tuple[Job, ...], jobs: tuple[Job, ...]) -> tuple[Sequence[Job], Sequence[Job]]:
    """The values of ``jobs`` that were not there before, and those from before that are not there any more.

    One that has moved counts as both, if there are few changes.
    """
    added: list[Job] = []
    gone: list[Job] = []
    olds, news = before, jobs
    for _ in range(_FEW):
        same = next(compress(count(), map(operator.is_not, olds, news)), min(len(olds), len(news)))
        olds, news = olds[same:], news[same:]
        if not (olds and news):
            return [*added, *news], [*gone, *olds]
        out, come = _step(olds, news)
        if not (out or come):
            break
        gone += olds[:out]
        added += news[:come]
        olds, news = olds[out:], news[come:]
    known, here = set(map(id, olds)), set(map(id, news))
    new, left = here - known, known - here
    return [*added, *(job for job in news if id(job) in new)], [*gone, *(job for job in olds if id(job) in left)]


def _step(olds: tuple[Job, ...], news: tuple[Job, ...]) -> tuple[int, int]:
    """How many of the first ``olds`` have gone, and how many ``news`` came in their place; none: not to be told."""
    for out in range(1, _NEAR):
        if olds[out : out + 1] and olds[out] is news[0]:
            return out, 0
        if news[out : out + 1] and olds[0] is news[out]:
            return 0, out
        if olds[out : out + 1] and news[out : out + 1] and olds[out] is news[out]:
            return out, out
    return (1, 1) if len(olds) == len(news) == 1 else (0, 0)


def _drop(queues: dict[str, list[Entry]], jobs: Sequence[Job], order: Order) -> None:
    """Take ``jobs`` out of the lists of ``queues``, which are replaced, never changed."""
    if len(jobs) > _FEW:
        left = set(map(id, jobs))
        for tenant in {job.tenant for job in jobs}:
            queues[tenant] = [one for one in queues[tenant] if id(one[-1]) not in left]
        return
    for tenant in {job.tenant for job in jobs}:
        queues[tenant] = list(queues[tenant])
    for job in jobs:
        del queues[job.tenant][bisect_left(queues[job.tenant], entry(job, order)[:-1])]


def _merge(queues: dict[str, list[Entry]], jobs: Iterable[Job], order: Order) -> None:
    """Put ``jobs`` into the lists of ``queues``, which are replaced, never changed."""
    more: dict[str, list[Entry]] = {}
    for job in jobs:
        more.setdefault(job.tenant, []).append(entry(job, order))
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

    Neither is written out before somebody asks. ``tell`` gives the reasons.
    """

    def __init__(
        self, tell: Callable[[], Mapping[str, str]], queues: Mapping[str, list[Entry]], left_out: Iterable[str]
    ) -> None:
        self._tell = tell
        self._queues = queues
        self._left_out = frozenset(left_out)
        self._reasons: Mapping[str, str] | None = None
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

    @property
    def _told(self) -> Mapping[str, str]:
        if self._reasons is None:
            self._reasons = self._tell()
        return self._reasons

    def _all_places(self) -> dict[str, tuple[int, str]]:
        if self._places is None:
            self._places = {
                one[-1].id: (place, tenant)
                for tenant, queue in self._queues.items()
                for place, one in enumerate(queue, start=1)
                if one[-1].id not in self._told and one[-1].id not in self._left_out
            }
        return self._places
