"""What a rank is told, and how training ended. Plain values: whoever starts ranks needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmos.layout import AttemptDirs, JobDirs
from llmos.spec import TrainJob


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a rank needs. ``base_model`` is the directory of ``job.model.ref``."""

    job: TrainJob
    job_dirs: JobDirs
    attempt: AttemptDirs
    data_dir: Path
    base_model: Path | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How training ended: done and exported, or stopped on request with a checkpoint."""

    phase: Literal["succeeded", "yielded"]
    step: int
    metrics: dict[str, float]
