"""Reservations, and what may start beside them.

The first jobs that do not fit get a reservation each: the earliest time at which they will, by the expected ends of
what runs, and the nodes they will take then. A later job may start now if it is expected to be gone by then (nine
times of ten), or if there is room for both: so it delays none of them. A few reservations are EASY backfill (Lifka,
1995), one for each blocked job is conservative backfill. Where no end is known, the time is infinitely late: then
nothing may count on being gone by then, and the nodes are kept. So a large gang starts after what runs on its nodes
has ended, however many small ones come. For the same reason what started since the waiting job came counts until nine
times of ten it has ended (for ever, where that is not known or over), and what ran before only until it likely has:
so those let in beside it can never add up to more than what fits beside it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmos.core.free import Columns, Held, Matrix, added
from llmos.core.running import Running
from llmos.core.shape import Shape


@dataclass(slots=True)
class Reservation:
    """``held`` is kept from ``at`` on; ``free`` is what is left beside it then."""

    at: float
    held: Held
    free: Matrix

    @property
    def binds_after(self) -> float:
        """What runs longer than until then must leave it its room; that is everything if its time is not known."""
        return -math.inf if math.isinf(self.at) else self.at


class Horizon:
    """What is free now and at the times that were promised.

    ``free`` is what is free now, and changes with what is taken; ``unserved`` what will be when no job runs any more.
    """

    def __init__(self, free: Matrix, unserved: Matrix, running: Iterable[Running], now: float) -> None:
        self.free = free
        self._never = unserved
        self._now = now
        self._running = list(running)
        self.reserved: list[Reservation] = []  # in the order of `binds_after`
        self._usable = [free]  # what may be used beside the first 0, 1, 2, … of them
        self._failed: dict[Shape, float] = {}

    def find(self, shape: Shape, until: float, within: Matrix | None = None) -> Columns | None:
        """Where ``shape`` can be from now ``until`` then without delaying any reservation, ``within`` that if given."""
        if within is not None:
            return shape.place(np.minimum(self.usable(until), within))
        if until >= self._failed.get(shape, math.nan):
            return None  # it had no room for so long, and since then there only came to be less
        placed = shape.place(self._usable[self._binding(until)])
        if placed is None:
            self._failed[shape] = min(until, self._failed.get(shape, math.inf))
        return placed

    def usable(self, until: float) -> Matrix:
        """What is free from now ``until`` then beside all reservations."""
        return self._usable[self._binding(until)]

    def take(self, one: Running, until: float) -> None:
        """``one`` has started: nine times of ten it runs ``until`` then at most."""
        held = one.held
        held.take(self.free)
        for reservation in self.reserved[: self._binding(until)]:
            held.take(reservation.free)
        columns = held.columns
        for level, reservation in enumerate(self.reserved):
            self._usable[level + 1][:, columns] = np.minimum(
                self._usable[level][:, columns], reservation.free[:, columns]
            )
        self._running.append(one)

    def reserve(self, shape: Shape, since: float) -> float | None:
        """Keep room for ``shape`` from the earliest time on at which there is, which is returned. None: never is.

        Its job waits ``since`` then.
        """
        releases = sorted(self._ends(since), key=lambda end: end[0])
        finite = [end for end in releases if math.isfinite(end[0])]
        times = sorted({end[0] for end in finite})
        first = bisect_left(times, True, key=lambda at: shape.fits_in(self._at(at, finite)))
        at = times[first] if first < len(times) else math.inf
        stay = [held for end, held in releases if math.isinf(end)]
        free = self._at(at, finite)
        placed = shape.place(_without(free, stay) if math.isinf(at) else free, prefer=self.free)
        if placed is None and math.isinf(at):
            placed = shape.place(free, prefer=self.free)
        if placed is None:
            return None
        held = shape.held(placed)
        beside = self._alone(at, finite)
        self._keep(Reservation(at, held, _without(beside, [held, *stay] if math.isinf(at) else [held])))
        return at

    def next_release(self) -> tuple[float, str] | None:
        """When the next running job is expected to end, and which one it is."""
        ends = ((one.ends_at(self._now), one.job.id) for one in self._running)
        return min((end for end in ends if self._now < end[0] < math.inf), default=None)

    def _keep(self, reservation: Reservation) -> None:
        for one in self.reserved:
            if one.at >= reservation.at:
                reservation.held.take(one.free)
        insort(self.reserved, reservation, key=lambda one: one.binds_after)
        self._usable = [self.free]
        for one in self.reserved:
            self._usable.append(np.minimum(self._usable[-1], one.free))

    def _ends(self, since: float) -> Iterator[tuple[float, Held]]:
        """When each running job gives back what, for one that waits ``since`` then. What ran before that and ends no
        one knows when is left out: it is counted as gone in the end."""
        for one in self._running:
            fresh = one.job.opened_at >= since and not one.ending
            end = max(one.job.opened_at + one.left_high, self._now) if fresh else one.ends_at(self._now)
            if fresh and end <= self._now:
                end = math.inf  # it should have ended
            if fresh or math.isfinite(end):
                yield end, one.held

    def _binding(self, until: float) -> int:
        """How many of the reservations, the first ones, what runs ``until`` then must leave alone."""
        return bisect_left(self.reserved, until, key=lambda one: one.binds_after)

    def _alone(self, at: float, releases: Sequence[tuple[float, Held]]) -> Matrix:
        """What is free at that time beside the reservations that have begun by then."""
        if math.isinf(at):
            later = self._never.copy()
        else:
            ended = bisect_right(releases, at, key=lambda end: end[0])
            later = added([held for _, held in releases[:ended]], self.free)
        return _without(later, [one.held for one in self.reserved if one.at <= at])

    def _at(self, at: float, releases: Sequence[tuple[float, Held]]) -> Matrix:
        """What is free from that time on, for ever."""
        later = self._alone(at, releases)
        for one in self.reserved:
            if one.at > at:
                np.minimum(later, one.free, out=later)
        return later


def _without(free: Matrix, held: Iterable[Held]) -> Matrix:
    """``free`` without what is ``held``."""
    left = free.copy()
    for one in held:
        one.take(left)
    return left
