"""``telemetry_pct``: what measuring a step costs of it, in processor time.

Two one-thread ranks train preset ``tiny`` on 1,024 tokens each a step: whole steps of
:class:`llmos.train.training.Training`. By turns they take some that are measured as a job's are – the meter around
collectives, the numbers in the sum of the gradients, the summary, stragglers, rank 0's row in ``metrics.jsonl`` and in
TensorBoard's file – and some that are not. Time is that of all threads of both processes, so waiting costs nothing.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest import mock

from benchmarks.ranks import on_ranks
from benchmarks.rows import ROOT, Measured, Options
from llmos.layout import AttemptDirs
from llmos.parallel.world import World
from llmos.spec import TrainJob, parse
from llmos.train import training as module
from llmos.train.metrics import Metrics
from llmos.train.rank_step import RankStep
from llmos.train.start import build_model, prepare_corpus, set_process
from llmos.train.stragglers import Stragglers
from llmos.train.telemetry import Telemetry
from llmos.train.training import Training

PAIRS, QUICK_PAIRS = 60, 10
TURN_STEPS = 3
RANKS, ROWS, LENGTH = 2, 4, 256

log = logging.getLogger("benchmarks")


def telemetry_pct(options: Options) -> Measured:
    """By how many percent a measured step takes more processor time."""
    pairs = QUICK_PAIRS if options.quick else PAIRS
    with tempfile.TemporaryDirectory(prefix="llmos-telemetry-") as directory:
        ranks = on_ranks(RANKS, _turns, directory, pairs)
    measured, plain = ([sum(times) for times in zip(*column, strict=True)] for column in zip(*ranks, strict=True))
    each = sorted(100 * (ours / theirs - 1) for ours, theirs in zip(measured, plain, strict=True))
    low, value, high = statistics.quantiles(each, n=4)
    step_s = statistics.median(plain) / TURN_STEPS / RANKS
    why = f"median of {pairs} pairs of {TURN_STEPS} steps, half of them {low:.2f} to {high:.2f} %"
    return Measured(value, why=f"{why}; a step takes {step_s * 1e3:.0f} ms of a core on each of {RANKS} ranks")


def _turns(directory: str, pairs: int) -> tuple[list[float], list[float]]:
    """Processor seconds of this rank's turns: those measured, and those not."""
    root, world, job = Path(directory), World.current(), _job()
    os.environ["OMP_NUM_THREADS"] = "1"
    set_process(job)
    corpus = prepare_corpus(job, root / "data", None, world, log.debug)
    attempt = AttemptDirs(root / "attempt")
    attempt.root.mkdir(exist_ok=True)
    found: tuple[list[float], list[float]] = [], []
    with (
        closing(
            Training(job, build_model(job, corpus, None), corpus, root / "checkpoints", world, attempt)
        ) as training,
        closing(Metrics(attempt, None)) as metrics,
    ):
        stragglers = Stragglers(job.watchdog.slow_rank, world, attempt.events)
        for number in range(pairs + 1):
            measured_s = _measured(training, stragglers, metrics if world.first else None)
            with _unmeasured(training):
                plain_s = _processor_s(training)
            if number:  # the first steps allocate
                found[0].append(measured_s)
                found[1].append(plain_s)
    return found


def _measured(training: Training, stragglers: Stragglers, metrics: Metrics | None) -> float:
    began_s = time.process_time()
    for _ in range(TURN_STEPS):
        row, _ = training.advance()
        stragglers.observe([rank.own_s for rank in training.telemetry.ranks])
        if metrics:
            metrics.write(row)
    return time.process_time() - began_s


def _processor_s(training: Training) -> float:
    began_s = time.process_time()
    for _ in range(TURN_STEPS):
        training.advance()
    return time.process_time() - began_s


@contextmanager
def _unmeasured(training: Training) -> Iterator[None]:
    """Steps inside measure nothing, and send as many zeros."""
    measuring = training.telemetry
    measuring.close()
    training.telemetry = _Nothing(training.world)
    with mock.patch.object(module, "summary", return_value={}):
        yield
    training.telemetry = measuring
    measuring.open()


class _Nothing(Telemetry):
    """What a rank is told that measures nothing."""

    def begin(self) -> None:
        self.ranks = [RankStep()]

    def outgoing(self) -> list[float]:
        return [0.0] * self.riders

    def incoming(self, numbers: object) -> None:
        self.spans = []

    def end(self) -> None:
        self.data_wait_s = 0.0


def _job() -> TrainJob:
    spec = parse(
        {
            "kind": "TrainJob",
            "name": "telemetry",
            "model": {"preset": "tiny"},
            "data": {"path": str(ROOT / "llmos" / "core" / "*.py"), "vocab_size": 512},
            "mesh": {"dp": RANKS},
            "steps": 100_000,
            "batch_size": RANKS * ROWS,
            "micro_batch_size": ROWS,
            "sequence_length": LENGTH,
            "output": {"model": "telemetry"},
        }
    )
    assert isinstance(spec, TrainJob)
    return spec
