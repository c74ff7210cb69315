"""Reservations, and what may start beside them.

The first jobs that do not fit get a reservation each: the earliest time at which they will, by the expected ends of what
runs, and the nodes they will take then. A later job may start now if it is expected to be gone by then (nine times of
ten), or if there is room for both: so it delays none of them. A few reservations are EASY backfill (Lifka, 1995), one for
each blocked job is conservative backfill. Where no end is known, the time is infinitely late: then nothing may count on
being gone by then, and the nodes are kept. So a large gang starts after what runs on its nodes has ended, however many
small ones come.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
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
        ends = [(one.ends_at(now), one.job.id, one.held) for one in running]
        self._releases = sorted((end for end in ends if math.isfinite(end[0])), key=lambda end: end[:2])
        self.reserved: list[Reservation] = []  # in the order of `binds_after`
        self._usable = [free]  # what may be used beside the first 0, 1, 2, … of them
        self._failed: dict[Shape, float] = {}

    def find(self, shape: Shape, until: float) -> Columns | None:
        """Where ``shape`` can be from now ``until`` then without delaying any reservation."""
        if until >= self._failed.get(shape, math.nan):
            return None  # it had no room for so long, and since then there only came to be less
        placed = shape.place(self._usable[self._binding(until)])
        if placed is None:
            self._failed[shape] = min(until, self._failed.get(shape, math.inf))
        return placed

    def usable(self, until: float) -> Matrix:
        """What is free from now ``until`` then beside all reservations."""
        return self._usable[self._binding(until)]

    def take(self, job: str, held: Held, until: float, likely: float) -> None:
        """A job has taken ``held``: nine times of ten ``until`` then, as likely as not until ``likely``."""
        held.take(self.free)
        for reservation in self.reserved[: self._binding(until)]:
            held.take(reservation.free)
        columns = held.columns
        for level, reservation in enumerate(self.reserved):
            self._usable[level + 1][:, columns] = np.minimum(
                self._usable[level][:, columns], reservation.free[:, columns]
            )
        if math.isfinite(likely):
            insort(self._releases, (likely, job, held), key=lambda end: end[:2])

    def reserve(self, shape: Shape) -> float | None:
        """Keep room for ``shape`` from the earliest time on at which there is, which is returned. None: never is."""
        times = sorted({end[0] for end in self._releases})
        first = bisect_left(times, True, key=lambda at: shape.fits_in(self._at(at)))
        at = times[first] if first < len(times) else math.inf
        free = self._at(at)
        placed = shape.place(free, prefer=self.free)
        if placed is None:
            return None
        held = shape.held(placed)
        reservation = Reservation(at, held, self._alone(at))
        for one in self.reserved:
            if one.at >= at:
                held.take(one.free)
        held.take(reservation.free)
        insort(self.reserved, reservation, key=lambda one: one.binds_after)
        self._usable = [self.free]
        for one in self.reserved:
            self._usable.append(np.minimum(self._usable[-1], one.free))
        return at

    def next_release(self) -> tuple[float, str] | None:
        """When the next running job is expected to end, and which one it is."""
        return next(((at, job) for at, job, _ in self._releases if at > self._now), None)

    def _binding(self, until: float) -> int:
        """How many of the reservations, the first ones, what runs ``until`` then must leave alone."""
        return bisect_left(self.reserved, until, key=lambda one: one.binds_after)

    def _alone(self, at: float) -> Matrix:
        """What is free at that time beside the reservations that have begun by then."""
        ended = [held for end, _, held in self._releases if end <= at]
        later = self._never.copy() if math.isinf(at) else added(ended, self.free)
        for one in self.reserved:
            if one.at <= at:
                one.held.take(later)
        return later

    def _at(self, at: float) -> Matrix:
        """What is free from that time on, for ever."""
        later = self._alone(at)
        for one in self.reserved:
            if one.at > at:
                np.minimum(later, one.free, out=later)
        return later
