"""``llmos train SPEC --local``: what it says about a job on this machine, and its exit code."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING

import typer

from llmos import settings
from llmos.cli.output import note, plain
from llmos.cli.progress import headline, watching
from llmos.layout import Layout

if TYPE_CHECKING:
    from llmos.spec import Job
    from llmos.views import JobView

INTERRUPTED = 130
LAST_LINES = 15


def train(spec: Job) -> JobView:
    """Train ``spec`` here, with the progress of a job on a cluster, and return it once it has succeeded.

    Raises typer.Exit with 130 when it was stopped, with 1 when it failed.
    """
    from llmos import local
    from llmos.spec import TrainJob

    layout = Layout(settings.state_dir())
    with watching() as progress:
        job = local.train(spec, layout, progress, note)
    if job.succeeded:
        if isinstance(spec, TrainJob):
            register = f"`llmos models import {job.path} --name {spec.output.model}` registers it with the cluster"
            note(f"the model is in {job.path}" + (f", registered as {job.model}" if job.model else f"\n  {register}"))
        return job
    log = layout.job(job.id).attempt(job.attempt).log
    if job.phase == "failed":
        if sys.stderr.isatty():  # a bar may have cut it off, lines have not
            note(f"job {job.id} {headline(job)}")
        note(f"last lines of its log ({log}):")
        with log.open(encoding="utf-8", errors="replace") as lines:
            note("\n".join(f"  {plain(line.rstrip())}" for line in deque(lines, LAST_LINES)))
        raise typer.Exit(1)
    note(job.reason)
    raise typer.Exit(INTERRUPTED)
