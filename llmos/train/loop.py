"""The training loop. Every rank runs :func:`train`; it knows torch.distributed through ``World`` and nothing of Ray."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import torch

from llmos.errors import LlmosError, TrainingError
from llmos.files import keep_lines
from llmos.layout import AttemptDirs
from llmos.models import Transformer
from llmos.parallel.world import World
from llmos.train import memory, start
from llmos.train.data import Corpus
from llmos.train.evaluate import Evaluation
from llmos.train.export import export_dtype, export_model, finished, lineage_of
from llmos.train.lora import merged, save_adapter
from llmos.train.metrics import Metrics
from llmos.train.profile import Profile
from llmos.train.run import Result, Run
from llmos.train.stragglers import Stragglers
from llmos.train.training import Training
from llmos.train.utilization import peak_tokens_per_s
from llmos.train.watchdog import Watchdog

LOG_INTERVAL_S = 5.0

log = logging.getLogger("llmos.train")


def train(run: Run, world: World) -> Result:
    """Train ``run.job`` from its latest checkpoint on; returns on every rank once it is exported, or was asked to stop.

    Rank 0 appends a row to ``run.attempt.metrics`` after each step, and leaves ``run.attempt.outcome``. A job whose
    export exists returns at once. Raises leaves of LlmosError, on every rank.
    """
    start.set_process(run.job)
    metrics = world.from_first(partial(finished, run.job_dirs.export, run.job))
    try:
        result = Result("succeeded", run.job.steps, metrics) if metrics is not None else _train(run, world)
    except Exception as error:
        if explained := _explained(error, run, world):
            raise explained from error
        raise
    world.from_first(partial(result.write, run.attempt.outcome))
    return result


def _explained(error: Exception, run: Run, world: World) -> LlmosError | None:
    """What ``error`` means if it says that memory or disk are full, and what to do about it."""
    if memory.is_exhausted(error):
        return memory.explained(error, run.job, run.base_model, world)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = f"rank {world.rank} cannot write {error.filename or 'a file'} below {run.job_dirs.root.parent.parent}"
        hint = "Make room; the next attempt goes on from the newest checkpoint."
        return TrainingError(f"{what}: {error.strerror}", hint=hint)
    return None


def _train(run: Run, world: World) -> Result:
    corpus = start.prepare_corpus(run.job, run.data_dir, run.base_model, world, log.info)
    model = start.build_model(run.job, corpus, run.base_model)
    with closing(Training(run.job, model, corpus, run.job_dirs.checkpoints, world, run.attempt)) as training:
        del model  # each rank keeps its part only
        with ExitStack() as stack:
            metrics = stack.enter_context(closing(Metrics(run.attempt, _peak(training, run)))) if world.first else None
            return _train_from_checkpoint(training, run, metrics)


def _train_from_checkpoint(training: Training, run: Run, metrics: Metrics | None) -> Result:
    training.resume()
    _forget(run.attempt, training.world, training.step)
    if training.world.first:
        log.info(
            "training %s: %s parameters, %s, %d ranks (%s), steps %d to %d",
            *(run.job.name, f"{training.config.num_parameters:,}", str(training.dtype).removeprefix("torch.")),
            *(training.world.size, training.mesh, training.step + 1, run.job.steps),
        )
    with (
        closing(Watchdog(run.job.watchdog, training.world, run.attempt)) as watchdog,
        closing(Profile(run.job, run.attempt.profile, training.mesh, training.telemetry)) as profile,
    ):
        evaluation, stopped = _steps(training, run, watchdog, metrics, profile)
    if stopped and training.step < run.job.steps:
        return Result("yielded", training.step, _metrics(training, evaluation))
    return _finish(training, run, evaluation or training.evaluate())


def _forget(attempt: AttemptDirs, world: World, step: int) -> None:
    """Drop what was written of steps after ``step``, where ranks of this attempt were lost: they are done again."""
    files = [attempt.samples(world.rank), *([attempt.metrics] if world.first else [])]
    for file in files:
        keep_lines(file, lambda row: row["step"] <= step)


def _steps(
    training: Training, run: Run, watchdog: Watchdog, metrics: Metrics | None, profile: Profile
) -> tuple[Evaluation | None, bool]:
    """Step until all are done or someone asks to stop; then there is a checkpoint of the last one.

    Returns what was measured after the very last step, if it was, and whether the end was asked for.
    """
    job, first, stop = run.job, training.world.first, False
    stragglers = Stragglers(job.watchdog.slow_rank, training.world, run.attempt.events)
    evaluation, logged_s, saved_s = None, 0.0, time.monotonic()
    while training.step < job.steps and not stop:
        profile.begin(training.step + 1)
        began_s = time.monotonic()
        row, stop = training.advance(stop=first and run.attempt.stop.exists())
        watchdog.step_ended(time.monotonic() - began_s)
        stragglers.observe([rank.own_s for rank in training.telemetry.ranks])
        profile.end(training.step)
        done = training.step == job.steps
        evaluation = (
            training.evaluate(watchdog.alive) if done or training.step % job.validation.every_steps == 0 else None
        )
        if evaluation:
            row |= {"validation_loss": evaluation.loss, "bits_per_byte": evaluation.bits_per_byte}
        if stop or done or _save_due(training, saved_s):
            row["checkpoint_s"] = training.save(evaluation.loss if evaluation else None)
            saved_s = time.monotonic()
        watchdog.alive()
        if metrics:
            metrics.write(row)
            if evaluation or time.monotonic() - logged_s > LOG_INTERVAL_S:
                log.info("%s", _line(row, job.steps))
                logged_s = time.monotonic()
    training.wait_saved()
    return evaluation, stop


def _peak(training: Training, run: Run) -> float | None:
    """Tokens per second at an MFU of 1. Adapters leave out a part of the backward pass: nothing is said of theirs."""
    if run.job.lora:
        return None
    told = training.config, run.job.sequence_length, training.dtype, training.world.device
    return peak_tokens_per_s(*told, training.world.size, run.calibration)


def _save_due(training: Training, saved_s: float) -> bool:
    """Whether a checkpoint is due: by steps, or by rank 0's clock, which is asked only if the job says so."""
    policy = training.job.checkpoint
    if training.step % policy.every_steps == 0:
        return True
    every_s = policy.every
    return every_s is not None and training.world.from_first(lambda: time.monotonic() - saved_s >= every_s) is True


def _finish(training: Training, run: Run, evaluation: Evaluation) -> Result:
    """Export the model with its lineage (rank 0; all ranks wait)."""
    metrics, dtype = _metrics(training, evaluation), export_dtype(training.dtype, training.world.device)
    lineage = lineage_of(run.job, run.attempt.root.name, training.corpus, run.base_model, metrics)
    model = training.whole_model()
    training.world.from_first(partial(_export, model, training.corpus, run, dtype, lineage))
    if training.world.first:
        log.info("exported %s", run.job_dirs.export)
    return Result("succeeded", training.step, metrics)


def _export(model: Transformer, corpus: Corpus, run: Run, dtype: torch.dtype, lineage: Mapping[str, Any]) -> None:
    """The model, adapters merged into it; before it the adapter alone, if the job asks for that."""
    spec = run.job.lora
    if spec is not None:
        if spec.save_adapter:
            save_adapter(model, spec, str(run.job.model.ref), run.job_dirs.adapter)
        model = merged(model)
    export_model(run.job_dirs.export, model, corpus, dtype, lineage)


def _metrics(training: Training, evaluation: Evaluation | None) -> dict[str, float]:
    corpus = training.corpus
    metrics = {
        "loss": training.loss,
        "steps": training.step,
        "tokens": training.tokens,
        "train_s": round(training.train_s, 3),
        "gzip_bits": corpus.gzip_bits,
        "unigram_bits": corpus.unigram_bits,
    }
    if evaluation:
        metrics |= {"validation_loss": evaluation.loss, "bits_per_byte": evaluation.bits_per_byte}
    return metrics


def _line(row: dict[str, float], steps: int) -> str:
    text = f"step {row['step']}/{steps}: loss {row['loss']:.4f}, {row['tokens_per_s']:,.0f} tokens/s"
    if "bits_per_byte" in row:
        text += f", validation loss {row['validation_loss']:.4f}, {row['bits_per_byte']:.4f} bits per byte"
    return text
