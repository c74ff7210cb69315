"""``step_predicted``: seconds of a step by ``llmos estimate`` after ``--calibrate``, against steps that are taken.

One rank on one core takes steps on random tokens, as ``llmos/train/speed.py`` measures them for the quickstart. Both
sides are wall time, so the machine must do nothing else. It is calibrated before each case, as its speed drifts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.rows import Measured, Options
from llmos.control.capacity import model_shape, training_of
from llmos.core.capacity import KINDS, Mesh, calibrated, step_time
from llmos.parallel.calibrate import calibrate
from llmos.spec import TrainJob, parse
from llmos.train.speed import step_seconds

TOKENS = 1024
"""Of a micro-batch: what a rank on a CPU takes at a time unless the job says otherwise."""


@dataclass(frozen=True, slots=True)
class Case:
    """A preset in a precision, on sequences of some length."""

    preset: str
    precision: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.preset} {self.precision} {TOKENS // self.sequence} × {self.sequence}"

    @property
    def job(self) -> TrainJob:
        """The case as a job of one rank."""
        spec = parse(
            {
                "kind": "TrainJob",
                "name": "step",
                "model": {"preset": self.preset},
                "data": {"path": "unread", "vocab_size": 2048},
                "steps": 1,
                "batch_size": TOKENS // self.sequence,
                "sequence_length": self.sequence,
                "precision": self.precision,
                "output": {"model": "measured"},
            }
        )
        assert isinstance(spec, TrainJob)
        return spec


CASES = (
    Case("tiny", "fp32", 256),
    Case("tiny", "bf16", 256),
    Case("tiny", "fp32", 1024),
    Case("small", "fp32", 256),
    Case("small", "bf16", 256),
)
QUICK_CASES = (CASES[0],)


def step_predicted(options: Options) -> Measured:
    """The worst ratio of predicted to measured seconds of the cases."""
    found = []
    for case in QUICK_CASES if options.quick else CASES:
        predicted, measured = _predicted_s(case.job), step_seconds(case.job)
        print(f"{case}: predicted {predicted:.3f} s, measured {measured:.3f} s", file=sys.stderr, flush=True)
        found.append((case, predicted, measured))
    _, predicted, measured = max(found, key=lambda one: abs(one[1] / one[2] - 1))
    each = ", ".join(f"{case} {ours / theirs:.3f}" for case, ours, theirs in found)
    return Measured(predicted, measured, predicted / measured, f"the worst of {each}")


def _predicted_s(job: TrainJob) -> float:
    shape = model_shape(job)
    kind = calibrated(KINDS["CPU"], calibrate())
    return step_time(shape, training_of(job, shape), Mesh(), kind).total_s
