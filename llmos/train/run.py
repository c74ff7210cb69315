"""What a rank is told, and how training ended. Plain values: whoever starts ranks needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmos.files import write_json
from llmos.layout import AttemptDirs, JobDirs, Layout
from llmos.spec import TrainFunction, TrainJob


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a rank needs. ``base_model`` is the directory of ``job.model.ref``, ``calibration`` a file that says
    what the machine was measured to reach, if it was."""

    job: TrainJob
    job_dirs: JobDirs
    attempt: AttemptDirs
    data_dir: Path
    base_model: Path | None = None
    calibration: Path | None = None


@dataclass(frozen=True, slots=True)
class FunctionRun:
    """Everything a rank needs to call a user's function. ``code`` is the file of one that was sent."""

    job: TrainFunction
    job_dirs: JobDirs
    attempt: AttemptDirs
    code: Path | None = None

    @classmethod
    def of(cls, job: TrainFunction, layout: Layout, job_dirs: JobDirs, attempt: AttemptDirs) -> FunctionRun:
        """The run of ``job`` under ``layout``."""
        sha256 = job.function.sha256
        return cls(job, job_dirs, attempt, None if sha256 is None else layout.function(sha256))


AnyRun = Run | FunctionRun


@dataclass(frozen=True, slots=True)
class Result:
    """How training ended: done and exported, or stopped on request with a checkpoint."""

    phase: Literal["succeeded", "yielded"]
    step: int
    metrics: dict[str, float]

    def write(self, path: Path) -> None:
        """Write it to ``path`` as JSON: an attempt's outcome."""
        write_json(path, {"phase": self.phase, "step": self.step, "metrics": self.metrics})


def ranks_of(found: Sequence[str], nodes: Sequence[str]) -> list[int]:
    """The rank of each worker, given the node that each was ``found`` on, and the node of each rank, 0 first.

    Of a node's workers, the first has the lowest of its ranks.
    """
    left = {node: [rank for rank, each in enumerate(nodes) if each == node] for node in nodes}
    return [left[node].pop(0) for node in found]
