"""Which steps of a training job are looked at closely."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from llmos.spec.base import Conflict, PositiveInt, Strict

if TYPE_CHECKING:
    from llmos.spec.train_job import TrainJob


class Profile(Strict):
    """A PyTorch trace of each rank and a picture of all ranks' time, for some steps."""

    start_step: PositiveInt = Field(default=5, description="the first step to profile; those before it warm up")
    steps: PositiveInt = Field(default=3, description="how many steps to profile")


def profile_within_steps(job: TrainJob) -> Iterator[Conflict]:
    """The job has the steps that ``profile`` names."""
    if job.profile and (last := job.profile.start_step + job.profile.steps - 1) > job.steps:
        which = f"steps {job.profile.start_step} to {last}"
        yield ("profile",), f"`profile` names {which}: expected steps up to `steps: {job.steps}`"
