"""How far a job of a scenario has come, over all its attempts."""

from __future__ import annotations

import math

from llmos.core.types import AttemptPhase
from llmos.sim.scenario import Work


class Progress:
    """What of ``work`` is done and kept, in seconds on its fewest workers. An attempt begins after ``launch_s``."""

    def __init__(self, work: Work, launch_s: float) -> None:
        self.work = work
        self._launch_s = launch_s
        self._done_s = 0.0
        self._begins_s: float | None = None
        self._speed = 1.0

    def launched(self, workers: int, now: float) -> float:
        """An attempt starts on so many ``workers``: how many seconds it runs if nothing disturbs it."""
        self._begins_s = now + self._launch_s
        self._speed = workers / len(self.work.job.gang.bundles)
        return max(self.work.run_s - self._done_s, 0.0) / self._speed

    def checkpointed_at(self, now: float) -> float | None:
        """When the open attempt committed its last checkpoint; None if it has none."""
        kept_s = self._kept_s(now)
        return self._begins_s + kept_s if self._begins_s is not None and kept_s else None

    def ended(self, phase: AttemptPhase, asked_s: float | None, now: float) -> None:
        """The open attempt is over: one that yields has a checkpoint of when it was asked to."""
        if self._begins_s is None:
            return
        kept_s = self._kept_s(now)
        if phase is AttemptPhase.YIELDED and asked_s is not None:
            kept_s = max(asked_s - self._begins_s, 0.0)
        self._done_s += kept_s * self._speed
        self._begins_s = None

    def _kept_s(self, now: float) -> float:
        """Seconds that the open attempt had run at its last checkpoint."""
        if self._begins_s is None or math.isinf(self.work.checkpoint_s):
            return 0.0
        return max(now - self._begins_s, 0.0) // self.work.checkpoint_s * self.work.checkpoint_s
