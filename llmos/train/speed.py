"""How fast this machine trains, measured on random tokens before there is a job."""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
import torch.distributed as dist

from llmos.models import Transformer
from llmos.parallel.data import GradientBuffer
from llmos.parallel.world import World
from llmos.spec import TrainJob
from llmos.train.batch import Batch
from llmos.train.local import join
from llmos.train.optimizer import Optimizer
from llmos.train.start import set_process, shape
from llmos.train.step import accumulate, compute_dtype

WARM_UP_STEPS = 2
LEAST_STEPS = 3


def step_seconds(job: TrainJob, measured_s: float = 4.0) -> float:
    """Seconds that a step of ``job`` takes on this machine's CPU: all of its ranks take steps together, as processes.

    The median of the steps of ``measured_s`` seconds, at least LEAST_STEPS, after a warm-up: a machine that stalls for
    a moment is not slow.
    """
    ranks = job.placed_mesh.size
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit this process's threads in mid-work
    deaf = (signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the ranks end by themselves
    with (
        tempfile.TemporaryDirectory(prefix="llmos-") as directory,
        ProcessPoolExecutor(ranks, spawn, initializer=signal.signal, initargs=deaf) as pool,
    ):
        return max(pool.map(partial(_measure, job, measured_s, directory), range(ranks)))


def _measure(job: TrainJob, measured_s: float, directory: str, rank: int) -> float:
    """The median seconds of a step, as one of the ranks."""
    set_process(job)
    join(directory, rank, job.placed_mesh.size)
    try:
        return statistics.median(_step_times(job, measured_s)[WARM_UP_STEPS:])
    finally:
        dist.destroy_process_group()


def _step_times(job: TrainJob, measured_s: float) -> list[float]:
    model, world = Transformer(shape(job)).train(), World.current()
    optimizer, gradients = Optimizer(model, job.optimizer, world), GradientBuffer(model, world, riders=1)
    dtype = compute_dtype(job.precision, world.device)
    share = len(world.share(job.batch_size)), job.sequence_length + 1
    times: list[float] = []
    stops = 0.0
    while not stops:
        began = time.perf_counter()
        gradients.zero()
        batch = Batch.of(torch.randint(model.config.vocab_size, share, device=world.device))
        accumulate(model, batch, job.micro_batch_size, dtype, 1 / batch.tokens_BT.numel())
        enough = len(times) >= WARM_UP_STEPS + LEAST_STEPS - 1 and sum(times[WARM_UP_STEPS:]) >= measured_s
        (stops,) = gradients.sum([float(enough)])
        torch.nn.utils.clip_grad_norm_(model.parameters(), job.optimizer.grad_clip)
        optimizer.step(job.optimizer.learning_rate)
        times.append(time.perf_counter() - began)
    return times
