"""Watching a job: a live bar on a terminal, plain lines in a log file. Both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmos.cli.output import duration, first_line, note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress

    from llmos.client import OnProgress
    from llmos.views import JobView, MetricsRow

LINE_EVERY_S = 10.0  # between plain lines: readable in a CI log, frequent enough to show life
RATE_ROWS = 20  # metrics rows that the remaining time is estimated from


class Pace:
    """Remembers the newest rows and how fast steps go by."""

    def __init__(self) -> None:
        self.rows: list[MetricsRow] = []

    def add(self, rows: Sequence[MetricsRow]) -> None:
        for row in rows:
            if self.rows and row.step <= self.rows[-1].step:  # a new attempt resumed from a checkpoint
                self.rows = []
            self.rows = [*self.rows, row][-RATE_ROWS:]

    def eta_s(self, steps: int) -> float | None:
        """Seconds until ``steps`` steps are done, at the pace of the newest rows; None until it is known."""
        if len(self.rows) < 2:
            return None
        first, last = self.rows[0], self.rows[-1]
        return (steps - last.step) * (last.time_s - first.time_s) / (last.step - first.step)

    def summary(self, steps: int) -> str:
        """``loss 2.310 · 9,600 tokens/s · MFU 41.0 % · ETA 1m 20s``; what is not known is left out."""
        if not self.rows:
            return ""
        row, eta_s = self.rows[-1], self.eta_s(steps)
        mfu = [f"MFU {100 * row.mfu:.1f} %"] if "mfu" in row else []
        return " · ".join([*row.shown, *mfu, *([f"ETA {duration(eta_s)}"] if eta_s else [])])


class Lines:
    """A line when the phase, the attempt or the reason changes, and one every few seconds while the job runs."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.last = ""
        self.next_at = 0.0

    def __call__(self, job: JobView, rows: list[MetricsRow]) -> None:
        self.pace.add(rows)
        if headline(job) != self.last:
            self.last = headline(job)
            note(f"{job.id}: {self.last}")
        elif rows and time.monotonic() >= self.next_at:
            self.next_at = time.monotonic() + LINE_EVERY_S
            note(f"{job.id}: step {job.step}/{job.steps} · {self.pace.summary(job.steps)}")


class Bar:
    """One task of a rich progress bar."""

    def __init__(self, progress: Progress) -> None:
        self.pace = Pace()
        self.progress = progress
        self.task = progress.add_task("", total=None, visible=False, title="", detail="")

    def __call__(self, job: JobView, rows: list[MetricsRow]) -> None:
        self.pace.add(rows)
        detail = " · ".join(filter(None, [f"step {job.step}/{job.steps}", self.pace.summary(job.steps)]))
        self.progress.update(
            self.task,
            total=job.steps if job.step or job.final else None,  # None: a bar that moves without promising anything
            completed=job.step,
            visible=True,
            title=f"{job.name} {headline(job)}",
            detail=detail if job.step else "",
        )


def headline(job: JobView) -> str:
    """``running``, ``queued (waiting for 2 CPUs)``, ``running, attempt 2``."""
    again = f", attempt {job.attempt}" if job.attempt > 1 else ""
    return f"{job.phase}{again}{f' ({first_line(job.reason)})' if job.reason else ''}"


@contextmanager
def watching() -> Iterator[OnProgress]:
    """What ``Client.wait`` should call: a live bar if stderr is a terminal, lines otherwise."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    text = (TextColumn("{task.fields[title]}", markup=False), TextColumn("{task.fields[detail]}", markup=False))
    with Progress(text[0], BarColumn(), text[1], console=Console(stderr=True)) as progress:
        yield Bar(progress)
