"""How fast this machine trains, measured on random tokens before there is a job."""

from __future__ import annotations

import signal
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
import torch.distributed as dist

from llmos.models import Transformer
from llmos.parallel.gradients import Gradients
from llmos.parallel.world import World
from llmos.spec import TrainJob
from llmos.train.batch import Batch
from llmos.train.limits import collective_timeout_s
from llmos.train.local import join, processes
from llmos.train.optimizer import Optimizer
from llmos.train.start import set_process, shape
from llmos.train.step import rank_mesh, spread

WARM_UP_STEPS = 2
LEAST_STEPS = 3


def step_seconds(job: TrainJob, measured_s: float = 4.0) -> float:
    """Seconds that a step of ``job`` takes on this machine's CPU: all of its ranks take steps together, as processes.

    The median of the steps of ``measured_s`` seconds, at least LEAST_STEPS, after a warm-up: a machine that stalls for
    a moment is not slow.
    """
    ranks = job.placed_mesh.size
    deaf = (signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the ranks end by themselves
    with (
        tempfile.TemporaryDirectory(prefix="llmos-") as directory,
        ProcessPoolExecutor(ranks, processes(), initializer=signal.signal, initargs=deaf) as pool,
    ):
        return max(pool.map(partial(_measure, job, measured_s, directory), range(ranks)))


def _measure(job: TrainJob, measured_s: float, directory: str, rank: int) -> float:
    """The median seconds of a step, as one of the ranks."""
    set_process(job)
    join(directory, rank, job.placed_mesh.size, collective_timeout_s(job.watchdog.timeout))
    try:
        return statistics.median(_step_times(job, measured_s)[WARM_UP_STEPS:])
    finally:
        dist.destroy_process_group()


def _step_times(job: TrainJob, measured_s: float) -> list[float]:
    world = World.current()
    model = spread(job, Transformer(shape(job)), rank_mesh(job, world))
    optimizer = Optimizer(model.parameters, job.optimizer, model.mesh.line("dp"))
    gradients = Gradients(model.parameters, model.mesh, riders=1, tied=model.config.tie_embeddings)
    model.passes.listener = gradients
    share = len(model.mesh.share(job.batch_size)), job.sequence_length + 1
    model.set_scale(1 / (job.batch_size * job.sequence_length))
    times: list[float] = []
    stops = 0.0
    while not stops:
        began = time.perf_counter()
        gradients.zero()
        batch = Batch.of(torch.randint(model.config.vocab_size, share, device=world.device))
        model.passes.accumulate(batch.tokens_BT, batch.targets_BT)
        enough = len(times) >= WARM_UP_STEPS + LEAST_STEPS - 1 and sum(times[WARM_UP_STEPS:]) >= measured_s
        (stops,), norm = gradients.sum([float(enough)])
        gradients.scale(min(1.0, job.optimizer.grad_clip / norm))
        optimizer.step(job.optimizer.learning_rate, gradients.local())
        times.append(time.perf_counter() - began)
    return times
