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
import operator
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmos.core.free import Columns, Held, Matrix, without
from llmos.core.releases import Releases, Times, Vector
from llmos.core.resources import ROUNDING
from llmos.core.running import Running
from llmos.core.shape import Shape


@dataclass(slots=True)
class Sum:
    """``spare`` (by kind) is what those that run beyond ``at`` may take of all nodes together: the rest is to come
    together for one that waits."""

    at: float
    spare: Vector

    def leaves(self, wanted: Sequence[float], until: float) -> bool:
        """Whether something that needs ``wanted`` may run ``until`` then."""
        return until <= self.at or not (self.spare + ROUNDING < wanted).any()

    def take(self, amount: Sequence[float], until: float) -> None:
        """Something has come to hold ``amount`` ``until`` then."""
        if until > self.at:
            self.spare = self.spare - amount


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
    The first ``reservations`` of those that wait get one each. They are worked out when they matter: where nobody
    behind finds room anyway, nothing has to be kept from them. If room may come ``together`` (``gather``), one that
    waits needs no more than that there is enough on all nodes together, and that much is kept for it from then on.
    """

    def __init__(
        self,
        free: Matrix,
        unserved: Matrix,
        running: Iterable[Running],
        now: float,
        reservations: int,
        together: bool = False,
    ) -> None:
        self.free = free
        self._never = unserved
        self._now = now
        self._running = list(running)
        self.reserved: list[Reservation] = []  # in the order of `binds_after`
        self._sum: list[float] | None = None
        self._usable = [free]  # what may be used beside the first 0, 1, 2, … of them
        self._failed: dict[Shape, float] = {}
        self._together = together
        self._sums: list[Sum] = []
        self._left = reservations
        self._waiting: list[tuple[str, Shape, float]] = []
        self._promised: dict[str, float] = {}
        self._releases: Releases | None = None

    def wait(self, id: str, shape: Shape, since: float) -> None:
        """Job ``id`` has no room and waits ``since`` then. One of the first gets a reservation before others start."""
        if self._left:
            self._waiting.append((id, shape, since))

    @property
    def promised(self) -> Mapping[str, float]:
        """When the reservations begin, by the id of their jobs."""
        self._reserve_all()
        return self._promised

    def find(self, shape: Shape, until: float, within: Matrix | None = None) -> Columns | None:
        """Where ``shape`` can be from now ``until`` then without delaying any reservation, ``within`` that if given."""
        if within is not None:
            return shape.place(np.minimum(self.usable(until), within))
        if until >= self._failed.get(shape, math.nan):
            return None  # it had no room for so long, and since then there only came to be less
        if self._failed and any(map(operator.gt, shape.least, self._all_free())):
            self._failed[shape] = -math.inf  # there is not enough on all nodes together
            return None
        if self._waiting:
            if not shape.fits_in(self.free):
                self._failed[shape] = -math.inf
                return None
            self._reserve_all()
        room = all(one.leaves(shape.total, until) for one in self._sums)
        placed = shape.place(self._usable[self._binding(until)]) if room else None
        if placed is None:
            kept = self.reserved or self._sums
            self._failed[shape] = min(until, self._failed.get(shape, math.inf)) if kept else -math.inf
        return placed

    def _all_free(self) -> list[float]:
        """What is free on all nodes together, by kind."""
        if self._sum is None:
            self._sum = np.maximum(self.free, 0.0).sum(axis=1).tolist()
        return self._sum

    def usable(self, until: float) -> Matrix:
        """What is free from now ``until`` then beside all reservations."""
        self._reserve_all()
        return self._usable[self._binding(until)]

    def take(self, one: Running, until: float) -> None:
        """``one`` has started: nine times of ten it runs ``until`` then at most."""
        held = one.held
        held.take(self.free)
        self._sum = None
        for one_sum in self._sums:
            one_sum.take(one.total, until)
        self._running.append(one)
        self._releases = None
        if self.reserved:
            self._take_later(held, until)

    def _take_later(self, held: Held, until: float) -> None:
        """Take it from what is left beside the reservations that bind what runs ``until`` then."""
        for reservation in self.reserved[: self._binding(until)]:
            held.take(reservation.free)
        columns = held.columns
        for level, reservation in enumerate(self.reserved):
            self._usable[level + 1][:, columns] = np.minimum(
                self._usable[level][:, columns], reservation.free[:, columns]
            )

    def reserve(self, shape: Shape, since: float) -> float | None:
        """Keep room for ``shape`` from the earliest time on at which there is, which is returned. None: never is.

        Its job waits ``since`` then.
        """
        releases = self._released()
        ends = releases.ends(since)
        times = np.unique(ends[np.isfinite(ends)])
        low, high = 0, len(times)
        while low < high:  # the more time has passed, the more has been given back
            middle = (low + high) // 2
            low, high = (low, middle) if shape.fits_in(self._at(times[middle], ends)) else (middle + 1, high)
        at = float(times[low]) if low < len(times) else math.inf
        stay: Matrix | float = releases.held(np.isinf(ends), self.free) if math.isinf(at) else 0.0
        free = self._at(at, ends)
        placed = shape.place(free - stay, prefer=self.free)
        if placed is None and math.isinf(at):
            placed = shape.place(free, prefer=self.free)
        if placed is None:
            return None
        if self._together:
            self._sums += [Sum(*found) for found in releases.together(shape.total, ends, self.free, at)]
        held = shape.held(placed)
        self._keep(Reservation(at, held, without([held], self._alone(at, ends)) - stay))
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

    def _binding(self, until: float) -> int:
        """How many of the reservations, the first ones, what runs ``until`` then must leave alone."""
        return bisect_left(self.reserved, until, key=lambda one: one.binds_after)

    def _reserve_all(self) -> None:
        """Give those that wait their reservations."""
        waiting, self._waiting = self._waiting, []
        for id, shape, since in waiting:
            if not self._left:
                break
            at = self.reserve(shape, since)
            if at is not None:
                self._promised[id] = at
                self._left -= 1

    def _released(self) -> Releases:
        if self._releases is None:
            self._releases = Releases(self._running, self._now)
        return self._releases

    def _alone(self, at: float, ends: Times) -> Matrix:
        """What is free at that time beside the reservations that have begun by then, if what runs ends at ``ends``."""
        later = self._never if math.isinf(at) else self.free + self._released().held(ends <= at, self.free)
        return without([one.held for one in self.reserved if one.at <= at], later)

    def _at(self, at: float, ends: Times) -> Matrix:
        """What is free from that time on, for ever."""
        later = self._alone(at, ends)
        for one in self.reserved:
            if one.at > at:
                np.minimum(later, one.free, out=later)
        return later
