"""``micro_batch_size: auto`` on GPUs: the largest micro-batch that fits is found by trying.

A step is the same however it is cut: its loss is a sum over the tokens of the whole step. So only the largest divisor
of a rank's sequences that does not run out of memory is looked for, on a model of its own that talks to nobody: a rank
that failed in the middle of a sum would leave the others waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from llmos.errors import TrainingError
from llmos.models import ModelConfig, Transformer
from llmos.parallel.mesh import RankMesh
from llmos.parallel.world import World
from llmos.spec import Mesh, TrainJob
from llmos.train.step import spread

OPTIMIZER_NUMBERS = {"adamw": 2, "muon": 2, "sgd": 1}
"""fp32 numbers that an optimizer will remember of a weight, at most."""

log = logging.getLogger("llmos.train")


def settled(job: TrainJob, config: ModelConfig, mesh: RankMesh) -> TrainJob:
    """``job`` with a number in the place of ``micro_batch_size: auto`` where that is found by trying: on GPUs that hold
    the whole model each. All ranks come to the same. Raises TrainingError when not even one sequence fits."""
    if job.micro_batch_size != "auto" or mesh.world.device.type != "cuda" or not mesh.only_dp:
        if mesh.world.first and job.micro_batch:
            log.info("micro-batches of %d sequences", job.micro_batch)
        return job
    trial = _Trial(job, config, mesh.world.device)
    share = -(-job.batch_size // mesh.readers)  # of the rank that has most
    rows = largest_that_fits(share, trial, mesh.world)
    if mesh.world.first:
        log.info("micro-batches of %d sequences: as many of %d as fit", rows, share)
    return job.model_copy(update={"micro_batch_size": rows})


def largest_that_fits(share: int, fits: Callable[[int], bool], world: World) -> int:
    """The largest divisor of ``share`` that ``fits`` on every rank. Raises TrainingError on every rank if none does."""
    for rows in (rows for rows in range(share, 0, -1) if share % rows == 0):
        (failed,) = world.total([float(not fits(rows))])
        if not failed:
            return rows
    hint = "Use activation_checkpointing: full, a shorter sequence_length, or a mesh with fsdp or tp."
    raise TrainingError("out of memory: not even a micro-batch of one sequence fits", hint=hint)


class _Trial:
    """A forward and a backward pass with gradients and as much more as the optimizer will hold."""

    def __init__(self, job: TrainJob, config: ModelConfig, device: torch.device) -> None:
        self._job = job.model_copy(update={"mesh": Mesh(), "micro_batch_size": job.batch_size, "compile": False})
        self._config, self._device = config, device

    def __call__(self, rows: int) -> bool:
        """Whether micro-batches of ``rows`` sequences fit."""
        try:
            self._run(rows)
        except torch.OutOfMemoryError:
            return False
        finally:
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        return True

    def _run(self, rows: int) -> None:
        with torch.device(self._device):
            model = spread(self._job, Transformer(self._config), RankMesh(World(device=self._device)))
            count = OPTIMIZER_NUMBERS[self._job.optimizer.name]
            later = [torch.empty_like(p, dtype=torch.float32) for p in model.parameters.values() for _ in range(count)]
            tokens_BT = torch.zeros(rows, self._job.sequence_length, dtype=torch.int64)
        model.set_scale(1.0)
        model.passes.accumulate(tokens_BT, tokens_BT)
        del later
