"""What services own and do not use, and who may have it meanwhile.

A service owns room for so many replicas (``Service.owned``), on whatever nodes. What of it is idle is lent, but only to
work that gives it back when asked: jobs that may be preempted, and of an elastic job what it has above its fewest
workers. What other jobs hold is firm: they start only where all that services own still fits beside it. So what a
service owns is never further away than the end of what was lent to others (``reclaim``).

Where the idle room of services is counted to be is decided anew in each plan: first where jobs are that can be ended,
so that the rest is left, in one piece, to those that cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from llmos.core import reasons
from llmos.core.free import GPU, SHUT, Columns, Grid, Held, Matrix, added
from llmos.core.resources import ROUNDING, Gang
from llmos.core.running import Running
from llmos.core.shape import Shapes
from llmos.core.types import Job, Service

_MORE = 1e6
"""Where jobs are that can be ended comes first, then where the least is left: large holes stay whole."""


class Lending:
    """What jobs that cannot be ended may have, while one plan hands it out: as much as others until :meth:`lend`.

    ``lent`` are GPUs by node, see Plan.
    """

    def __init__(self, grid: Grid, shapes: Shapes) -> None:
        self.lent: dict[str, float] = {}
        self._grid = grid
        self._shapes = shapes
        self._firm: Matrix | None = None  # what is left to those jobs; None: nothing is lent
        self._in_line = False

    def lend(self, services: Iterable[Service], unserved: Matrix, running: Sequence[Running]) -> None:
        """Set aside what ``services`` own and do not use. ``unserved`` is what their replicas, those that are still to
        come among them, leave of the nodes."""
        owners = [service for service in services if service.owned > service.replicas]
        if not owners:
            return
        bare = unserved - (self._grid.total - self._grid.usable)
        self._firm = bare.copy()
        for one in running:
            self.take(one)
        guests = added([one.held for one in running], np.zeros_like(bare)) - (bare - self._firm)
        idle, short = np.zeros(bare.shape[1]), False
        for service in sorted(owners, key=lambda service: (service.created_at, service.id)):
            missing = service.owned - service.replicas
            for replicas, held in self._idle(service.gang, missing, _MORE * guests - self._firm):
                missing -= replicas
                held.take(self._firm)
                held.take(bare)
                idle[held.columns] += held.amounts[GPU]
            short = short or (missing > 0 and self._shapes(service.gang).fits_in(bare))
        lent = np.minimum(idle, guests[GPU])
        self.lent = {self._grid.ids[i]: float(lent[i]) for i in np.flatnonzero(lent > ROUNDING)}
        if short:  # until what is firm has ended, no more becomes firm
            self._firm = np.full_like(bare, SHUT)

    @property
    def lends(self) -> bool:
        """Whether some jobs may have less than what is free."""
        return self._firm is not None

    def next_pass(self) -> None:
        """The queue is gone through again, from its first job on."""
        self._in_line = False

    def within(self, job: Job) -> Matrix | None:
        """What ``job`` must stay within; None: all that is free."""
        if self._firm is None or job.preemptible:
            return None
        return np.full_like(self._firm, SHUT) if self._in_line else self._firm

    def bears(self, job: Job, columns: Columns) -> bool:
        """Whether what is lent allows ``job`` to have a bundle on the node at each of ``columns``."""
        within = self.within(job)
        fewest = self._shapes(job.gang)
        return within is None or fewest.fits(columns[: len(job.gang.bundles)], within)

    def bears_growth(self, one: Running, gang: Gang, free: Matrix) -> bool:
        """Whether what is lent allows ``one``, once it has ended, to go on as ``gang`` where that fits then."""
        if self._firm is None or one.job.preemptible:
            return True
        self.give(one)
        columns = self._shapes(gang).place(added([one.held], free))
        found = columns is not None and self.bears(one.job, columns)
        self.take(one)
        return found

    def take(self, one: Running) -> None:
        """``one`` has started."""
        if self._firm is not None and not one.job.preemptible:
            self._kept(one).take(self._firm)

    def give(self, one: Running) -> None:
        """``one`` has not started after all."""
        if self._firm is not None and not one.job.preemptible:
            self._kept(one).give(self._firm)

    def refusal(self, job: Job, free: Matrix) -> str:
        """Why ``job``, which does not start, waits for services rather than for room; or the empty string.

        Then no later one that cannot be ended starts before it: what is not lent comes to be enough for it.
        """
        within = self.within(job)
        if within is None or self._firm is None:
            return ""
        shapes = [self._shapes(gang) for gang in job.gangs]
        both = np.minimum(free, within)
        if any(shape.fits_in(both) for shape in shapes):
            return ""
        if any(shape.fits_in(within) for shape in shapes) and not any(shape.fits_in(free) for shape in shapes):
            return ""
        self._in_line = True
        left = np.maximum(self._firm, 0.0).sum(axis=1)
        return reasons.lent(job.gang, self._grid.resources(left))

    def _kept(self, one: Running) -> Held:
        """What ``one``, which cannot be ended, goes on to hold: the share of its fewest workers."""
        fewest = self._shapes(one.job.gang)
        return fewest.held(self._grid.locate(one.nodes[: len(one.job.gang.bundles)]))

    def _idle(self, gang: Gang, count: int, prefer: Matrix) -> Iterator[tuple[int, Held]]:
        """Room for ``count`` replicas of ``gang``, or for as many as there is, on nodes that have most of ``prefer``:
        so many replicas, what they hold. It is to be taken before the next is asked for."""
        assert self._firm is not None
        if len(gang.bundles) == 1:
            all_of_them = self._shapes(Gang(gang.bundles * count, labels=gang.labels))
            if (columns := all_of_them.place(self._firm, prefer)) is not None:
                yield count, all_of_them.held(columns)
                return
        shape = self._shapes(gang)
        for _ in range(count):
            if (columns := shape.place(self._firm, prefer)) is None:
                return
            yield 1, shape.held(columns)
