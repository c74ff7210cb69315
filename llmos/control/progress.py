"""What running attempts have come to, as their files show: when they were saved last, how fast they are."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from llmos.control.journal import first_metrics, last_metrics
from llmos.core.types import Job
from llmos.layout import AttemptDirs, Layout

LOOK_EVERY_S = 5.0
"""How often the files of a running job are looked at: they may lie on a network's storage."""
ROWS = 32
"""So many of the last steps say how fast an attempt was: the first ones compile and fill caches."""
SAME = 0.05
"""A speed that differs by no more is taken to be the same: ``plan`` looks anew at each job that changes."""
_CHECKPOINT = re.compile(r"step-\d+")
_MANIFEST = "manifest.json"  # written last


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen of an attempt: when it was saved last, how long its ranks took until their first step, and how fast
    it is; the last two of elastic jobs only."""

    attempt: int
    checkpointed_at: float | None
    began_s: float | None = None
    speed: float | None = None


class Progress:
    """Looks at the files of running jobs, of each once in a while."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._looks: dict[str, tuple[float, _Look]] = {}
        self._told: dict[str, tuple[Job, _Look, Job]] = {}

    def told(self, job: Job, now: float) -> Job:
        """``job``, which has an attempt open, with when it was saved last; an elastic one also with how long it takes
        to begin, and how fast it is in its size. The same value as long as nothing of that has changed."""
        at, look = self._looks.get(job.id, (now, None))
        if look is None or look.attempt != job.attempt or now - at >= LOOK_EVERY_S:
            fresh = self._look(job, look)
            look = look if look == fresh else fresh
            self._looks[job.id] = now, look
        before = self._told.get(job.id)
        if before and before[0] is job and before[1] is look:
            return before[2]
        resize_s = job.resize_s if look.began_s is None else max(job.resize_s, look.began_s)
        measured = {} if look.speed is None else {len(job.placement): look.speed}
        goodput = tuple(sorted({**dict(job.goodput), **measured}.items()))
        same = (look.checkpointed_at, resize_s, goodput) == (job.checkpointed_at, job.resize_s, job.goodput)
        told = job if same else job.but(checkpointed_at=look.checkpointed_at, resize_s=resize_s, goodput=goodput)
        self._told[job.id] = job, look, told
        return told

    def forget(self, job: str) -> None:
        """Job ``job`` runs no more."""
        self._looks.pop(job, None)
        self._told.pop(job, None)

    def measured(self, job: Job, now: float) -> dict[str, Any]:
        """What is known of an elastic ``job`` once its attempt has ended: tokens per second by number of workers, and
        how long it made no progress when it began and ended: the columns ``goodput`` and ``resize_s``."""
        dirs = self._layout.job(job.id).attempt(job.attempt)
        rows = last_metrics(dirs, ROWS)
        goodput = dict(job.goodput)
        if (found := speed(rows)) is not None:
            goodput[len(job.placement)] = found
        began_s = began(dirs, job.opened_at)
        last_at = _number(rows[-1], "time_s") if rows else None
        ended_s = 0.0 if last_at is None else max(now - last_at, 0.0)
        resize_s = job.resize_s if began_s is None else began_s + ended_s
        return {"goodput": {str(size): value for size, value in goodput.items()}, "resize_s": resize_s}

    def _look(self, job: Job, before: _Look | None) -> _Look:
        dirs = self._layout.job(job.id)
        saved = saved_at(dirs.checkpoints)
        if not job.larger:
            return _Look(job.attempt, saved)
        attempt, known = dirs.attempt(job.attempt), before if before and before.attempt == job.attempt else None
        began_s = known.began_s if known else None
        fast, was = speed(last_metrics(attempt, ROWS)), known.speed if known else None
        if fast is None or (was is not None and abs(fast - was) <= SAME * was):
            fast = was
        return _Look(job.attempt, saved, began(attempt, job.opened_at) if began_s is None else began_s, fast)


def saved_at(checkpoints: Path) -> float | None:
    """When the newest checkpoint in this directory was complete (seconds since the epoch). None: there is none."""
    newest: float | None = None
    with suppress(OSError), os.scandir(checkpoints) as entries:
        for entry in entries:
            if _CHECKPOINT.fullmatch(entry.name):
                with suppress(OSError):  # it is being removed, or written
                    newest = max(newest or 0.0, os.stat(os.path.join(entry.path, _MANIFEST)).st_mtime)
    return newest


def began(dirs: AttemptDirs, opened_at: float) -> float | None:
    """Seconds from the start of an attempt until it began its first step. None: it has not done one yet."""
    row = first_metrics(dirs) or {}
    at = _number(row, "time_s")
    return None if at is None else max(at - (_number(row, "step_s") or 0.0) - opened_at, 0.0)


def speed(rows: Sequence[dict[str, Any]]) -> float | None:
    """Tokens per second of steps, the median; of a loop that does not tell, steps per second. None: not known."""
    told = [value for row in rows if (value := _number(row, "tokens_per_s"))]
    if told:
        return median(told)
    timed = [(row["step"], at) for row in rows if (at := _number(row, "time_s")) is not None]
    rates = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(timed) if b[0] > a[0] and b[1] > a[1]]
    return median(rates) if rates else None


def _number(row: dict[str, Any], name: str) -> float | None:
    """What a row says of ``name``, if that is a number: a loop of a user's own may write anything there."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else None
