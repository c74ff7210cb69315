"""How fast this machine trains, measured on random tokens before there is a job."""

from __future__ import annotations

import statistics
import time

import torch

from llmos.models import Transformer
from llmos.parallel.data import GradientBuffer
from llmos.parallel.world import World
from llmos.spec import TrainJob
from llmos.train.optimizer import Optimizer
from llmos.train.start import set_threads, shape
from llmos.train.step import accumulate, compute_dtype

WARM_UP_STEPS = 2


def step_seconds(job: TrainJob, measured_s: float = 3.0) -> float:
    """Seconds that one rank of ``job`` takes for a step on this machine's CPU, what ranks tell each other left out.

    The median of the steps that begin within ``measured_s`` seconds, at least three, after a warm-up.
    """
    set_threads(job)
    model, world = Transformer(shape(job)).train(), World()
    optimizer, gradients = Optimizer(model, job.optimizer), GradientBuffer(model, world)
    rows, dtype = job.batch_size // job.placed_mesh.size, compute_dtype(job.precision, world.device)
    samples = torch.randint(model.config.vocab_size, (rows, job.sequence_length + 1))
    times: list[float] = []
    while len(times) < WARM_UP_STEPS + 3 or sum(times) < measured_s:
        began = time.perf_counter()
        gradients.zero()
        accumulate(model, samples, job.micro_batch_size, dtype, 1 / samples.numel())
        torch.nn.utils.clip_grad_norm_(model.parameters(), job.optimizer.grad_clip)
        optimizer.step(job.optimizer.learning_rate)
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UP_STEPS:])
