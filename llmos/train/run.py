"""What a rank is told, and how training ended. Plain values: whoever starts ranks needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmos.layout import AttemptDirs, JobDirs
from llmos.spec import TrainJob


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
class Result:
    """How training ended: done and exported, or stopped on request with a checkpoint."""

    phase: Literal["succeeded", "yielded"]
    step: int
    metrics: dict[str, float]


def ranks_of(found: Sequence[str], nodes: Sequence[str]) -> list[int]:
    """The rank of each worker, given the node that each was ``found`` on, and the node of each rank, 0 first.

    Of a node's workers, the first has the lowest of its ranks.
    """
    left = {node: [rank for rank, each in enumerate(nodes) if each == node] for node in nodes}
    return [left[node].pop(0) for node in found]
