"""The model everyone can train: Python code, learnt from the standard library of the running interpreter."""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Sequence

from llmos.spec import Data, ModelSource, Optimizer, Output, TrainJob
from llmos.spec.base import Mesh
from llmos.spec.train_job import CheckpointPolicy, Validation

NAME = "stdlib-coder"
"""Of the job, the model and the service alike."""
BATCH_SIZE = 8
SEQUENCE_LENGTH = 256
TOKENS_PER_STEP = BATCH_SIZE * SEQUENCE_LENGTH

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
"""Directories of other people's code, of tests, which repeat themselves, and of the reference manual as one string."""


def standard_library() -> list[str]:
    """One glob per directory of the standard library that has Python sources; packages and tests are left out."""
    top, globs = sysconfig.get_path("stdlib"), []
    for directory, children, names in os.walk(top):
        children[:] = sorted(set(children) - _LEFT_OUT)
        if any(name.endswith(".py") for name in names):
            globs.append(os.path.join(glob.escape(directory), "*.py"))
    return globs


def stdlib_coder(paths: Sequence[str], steps: int) -> TrainJob:
    """The job that trains ``stdlib-coder`` on the text at ``paths``, on two workers: TOKENS_PER_STEP a step."""
    return TrainJob(
        name=NAME,
        model=ModelSource(preset="tiny"),
        data=Data(path=tuple(paths), vocab_size=2048, validation_fraction=0.05),
        mesh=Mesh(dp=2),
        optimizer=Optimizer(name="muon", learning_rate=6e-3, warmup_steps=20, min_learning_rate_ratio=0.0),
        steps=steps,
        batch_size=BATCH_SIZE,
        sequence_length=SEQUENCE_LENGTH,
        precision="auto",
        checkpoint=CheckpointPolicy(every_steps=250),
        validation=Validation(every_steps=1000),
        output=Output(model=NAME),
    )
