"""What ``Client.train`` does besides submitting: a job from keyword arguments, waiting, and progress in print."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmos.errors import TrainingError, UsageError
from llmos.views import JobView, MetricsRow

if TYPE_CHECKING:
    from llmos.client import Client, OnProgress
    from llmos.sources import Source
    from llmos.spec import TrainJob

PRINT_EVERY_S = 5.0


def job_of(source: Source | None, fields: Mapping[str, Any]) -> TrainJob:
    """The TrainJob of ``source`` with ``fields`` in the place of its own, or of ``fields`` alone.

    Values are what a spec has there: ``mesh={"dp": 2}`` is ``mesh=llmos.Mesh(dp=2)``. Without ``output``, the model is
    called like the job. Raises SpecError with every problem, UsageError when ``source`` is not one TrainJob.
    """
    from llmos.sources import specs
    from llmos.spec import TrainJob, parse

    written: dict[str, Any] = {"kind": "TrainJob"}
    if source is not None:
        found = specs(source)
        if len(found) != 1 or not isinstance(found[0], TrainJob):
            kinds = ", ".join(spec.kind for spec in found)
            raise UsageError(f"expected exactly one TrainJob, found {kinds}", hint="serve() takes a Service")
        written |= plain(found[0])
    elif "name" in fields:
        written["output"] = {"model": fields["name"]}
    job = parse(written | {name: plain(value) for name, value in fields.items()}, source="train()")
    assert isinstance(job, TrainJob)
    return job


def plain(value: Any) -> Any:
    """A part of a spec as it would be written."""
    return value.model_dump(mode="json", exclude_unset=True) if hasattr(value, "model_dump") else value


def ended(cluster: Client, job: str, on_progress: OnProgress | None) -> JobView:
    """Job ``job`` once it has ended; without ``on_progress``, how it gets on is printed. Ctrl-C leaves it running.

    Raises TrainingError when it fails.
    """
    try:
        view = cluster.wait(job, on_progress=on_progress or Printed())
    except KeyboardInterrupt:
        print(f"job {job} goes on: come back with `.wait({job!r})`, end it with `.cancel({job!r})`")
        raise
    if not view.succeeded:
        raise TrainingError(f"job {job} {view.phase}: {view.reason}", hint=f"see `.logs({job!r})`")
    return view


class Printed:
    """Prints a job when its phase or its reason changes, and every few seconds while it gets on."""

    def __init__(self) -> None:
        self._last: tuple[str, str, int] | None = None
        self._next_s = 0.0

    def __call__(self, job: JobView, rows: list[MetricsRow]) -> None:
        now = job.phase, job.reason, job.attempt
        if now != self._last or (rows and time.monotonic() >= self._next_s):
            self._last, self._next_s = now, time.monotonic() + PRINT_EVERY_S
            print(f"{job}{f' {job.reason}' if job.reason else ''}", flush=True)
