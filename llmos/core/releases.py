"""What runs as arrays: when each gives back what it holds, for one that waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llmos.core.free import Mask, Matrix
from llmos.core.resources import ROUNDING
from llmos.core.running import Running, column

Times = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]


class Releases:
    """The ends of ``running``, in their order, as they are expected at ``now``."""

    def __init__(self, running: Sequence[Running], now: float) -> None:
        self._now = now
        self._running = running
        self._opened, left, high = (column(running, name) for name in ("job.opened_at", "left", "left_high"))
        asked = (one.attempt.stopping_since is not None for one in running)
        self._ending = np.fromiter(asked, dtype=bool, count=len(running))
        self._likely = np.where(self._ending, now, np.maximum(self._opened + left, now))
        self._late = np.maximum(self._opened + high, now)
        columns = [one.held.columns for one in running]
        self._owner = np.repeat(np.arange(len(running)), np.fromiter(map(len, columns), np.int64, len(running)))
        self._columns = np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64)
        self._amounts = np.concatenate([one.held.amounts for one in running], axis=1) if columns else None

    def ends(self, since: float) -> Times:
        """When each of them ends, for one that waits ``since`` then: its median, infinity if that is not known.

        What started after that counts until nine times of ten it has ended, for ever once that is over. What ran before
        and ends no one knows when is not a number: it is counted as gone in the end.
        """
        fresh = (self._opened >= since) & ~self._ending
        ends = np.where(fresh, self._late, self._likely)
        ends[fresh & (self._late <= self._now)] = np.inf  # it should have ended
        ends[~fresh & np.isinf(self._likely)] = np.nan
        return ends

    def together(
        self, wanted: Sequence[float], ends: Times, free: Matrix, before: float
    ) -> Iterator[tuple[float, Vector]]:
        """When all that is free on all nodes is enough for ``wanted``, and what it leaves then, if that is ``before``
        then."""
        order = np.argsort(ends)
        order = order[ends[order] < before]
        given = np.array([self._running[i].held.total for i in order.tolist()]).reshape(-1, len(free))
        start = np.maximum(free, 0.0).sum(axis=1, keepdims=True).T
        left = np.concatenate([start, start + np.cumsum(given, axis=0)]) - wanted
        enough = np.flatnonzero((left > -ROUNDING).all(axis=1))
        if len(enough):
            at = self._now if enough[0] == 0 else float(ends[order[enough[0] - 1]])
            yield at, left[enough[0]]

    def held(self, who: Mask, like: Matrix) -> Matrix:
        """What all those together hold, by kind and node, in the shape of ``like``."""
        held = np.zeros_like(like)
        if self._amounts is not None:
            part = who[self._owner]
            columns = self._columns[part]
            for row, amount in zip(held, self._amounts, strict=True):
                row += np.bincount(columns, weights=amount[part], minlength=len(row))
        return held
