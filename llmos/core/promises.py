"""How good the estimated starts are, and how much later to say.

What will be submitted, and who will be let in before, no estimate knows. So the wait that is kept nine times of ten is
stretched by a factor, and the factor follows from what became of earlier estimates: it grows by each that was not kept
and shrinks by each that was, nine times less. Whatever the workload does, in the long run nine of ten are kept then
(adaptive conformal inference: Gibbs and Candès, NeurIPS 2021).
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

KEPT = 0.9
"""The share that should be kept."""
STEP = 0.1
"""By how much of itself the factor grows when one is not kept."""
LEAST, MOST = 1 / 64, 4096.0


class Promises:
    """The first late estimate of each job's start, and whether it was kept. Times are seconds since the epoch.

    ``caution`` is the factor; ``kept`` and ``broken`` count.
    """

    def __init__(self) -> None:
        self.caution = 1.0
        self.kept = 0
        self.broken = 0
        self._told: dict[str, float] = {}
        self._due: list[tuple[float, str]] = []

    def tell(self, id: str, at: float) -> None:
        """Job ``id`` was told that it starts before ``at``. The first time counts."""
        if id not in self._told:
            self._told[id] = at
            heappush(self._due, (at, id))

    def pass_to(self, now: float) -> None:
        """It is ``now``: who should have started before, and has not, was told wrong."""
        while self._due and self._due[0][0] < now:
            at, id = heappop(self._due)
            if self._told.get(id) == at:
                self._told[id] = math.inf  # it has been counted
                self.broken += 1
                self._stretch(KEPT * STEP)

    def began(self, id: str) -> None:
        """Job ``id`` starts now."""
        if math.isfinite(self._told.pop(id, math.inf)):
            self.kept += 1
            self._stretch((KEPT - 1) * STEP)

    def forget(self, id: str) -> None:
        """Job ``id`` will not start: what it was told counts neither way."""
        self._told.pop(id, None)

    def _stretch(self, by: float) -> None:
        self.caution = min(max(self.caution * math.exp(by), LEAST), MOST)
