"""Some steps looked at closely: a PyTorch trace from each rank, and one picture of all ranks' time."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from llmos.parallel.mesh import AXES, RankMesh
from llmos.parallel.meter import Mark
from llmos.spec import TrainJob
from llmos.train.telemetry import Telemetry
from llmos.train.timeline import Interval, Lane, draw

log = logging.getLogger("llmos.train")


class Profile:
    """Profiles the steps that ``job.profile`` names into ``directory``; every rank has one.

    ``trace-<rank>.json.gz`` is for Perfetto (https://ui.perfetto.dev) or chrome://tracing, ``timeline.svg`` for a
    browser. A profiled step is slower than others; the picture is drawn from marks that every step sets.
    """

    def __init__(self, job: TrainJob, directory: Path, mesh: RankMesh, telemetry: Telemetry) -> None:
        self._job, self._directory, self._mesh, self._telemetry = job, directory, mesh, telemetry
        self._tracer: torch.profiler.profile | None = None
        self._zero: Mark = None
        self._first_step = 0
        self._intervals: list[Interval] = []
        self._steps: list[float] = []

    def begin(self, step: int) -> None:
        """Step ``step`` (from 1) is about to begin. Collective at the first one that is profiled."""
        spec = self._job.profile
        if spec is None or not spec.start_step <= step < spec.start_step + spec.steps:
            return
        meter = self._telemetry.meter
        if self._tracer is None:
            self._tracer = torch.profiler.profile(activities=_activities(self._mesh))
            self._tracer.start()
            self._mesh.world.total([0.0])  # so that all begin to count at one moment
            self._zero, self._first_step = meter.mark(), step
            self._intervals, self._steps = [], []
        self._steps.append(meter.seconds(self._zero, meter.mark()))

    def end(self, step: int) -> None:
        """Step ``step`` has ended. Collective after the last one that is profiled."""
        spec = self._job.profile
        if spec is None or self._tracer is None:
            return
        meter = self._telemetry.meter
        for name, began, ended in self._telemetry.spans:
            self._intervals.append((name, meter.seconds(self._zero, began), meter.seconds(self._zero, ended)))
        if step == spec.start_step + spec.steps - 1:
            self._tracer.stop()
            self._write(self._tracer)
            self._tracer = None

    def close(self) -> None:
        """Stop tracing, if training has ended in the middle of it."""
        if self._tracer is not None:
            self._tracer.stop()
            self._tracer = None

    def _write(self, tracer: torch.profiler.profile) -> None:
        world, first_step = self._mesh.world, self._first_step
        world.from_first(lambda: self._directory.mkdir(parents=True, exist_ok=True))
        tracer.export_chrome_trace(str(self._directory / f"trace-{world.rank}.json.gz"))
        lanes = world.from_all(lambda: [self._place(), self._intervals, self._steps])
        if world.first:
            what = f"{self._job.name}: {self._mesh}, steps {first_step} to {first_step + len(self._steps) - 1}"
            named = [Lane(f"rank {rank}  {place}", *rest) for rank, (place, *rest) in enumerate(lanes)]
            picture = draw(named, first_step, what)
            (self._directory / "timeline.svg").write_text(picture)
            log.info("profiled %s: %s", what, self._directory)

    def _place(self) -> str:
        split = [axis for axis in AXES if self._mesh.sizes[axis] > 1]
        return " ".join(f"{axis} {self._mesh.place[axis]}" for axis in split)


def _activities(mesh: RankMesh) -> list[ProfilerActivity]:
    on_gpu = mesh.world.device.type == "cuda"
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
