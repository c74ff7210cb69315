"""What one optimizer step runs: the model spread over the mesh, and micro-batches."""

from __future__ import annotations

import torch

from llmos.errors import UsageError
from llmos.models import Transformer
from llmos.parallel.mesh import RankMesh
from llmos.parallel.model import Layout, SpreadModel
from llmos.parallel.stage import Numerics
from llmos.parallel.world import World
from llmos.spec import TrainJob
from llmos.train.loss import cross_entropy_sum
from llmos.train.precision import compute_dtype, weights_dtype

MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens per rank and forward pass unless the job says how many sequences. On a CPU, more no longer fit its caches, and
allocations above 32 MiB cost page faults each time."""
_PARTS_PER_STAGE = 4
"""Micro-batches for each pipeline rank unless the job says: a bubble of (p - 1) / (4p + p - 1), less than a fifth."""


def rank_mesh(job: TrainJob, world: World) -> RankMesh:
    """The job's mesh on the ranks that there are: another number than it names makes more or fewer copies (dp).

    Raises UsageError when they do not divide into copies.
    """
    mesh = job.placed_mesh
    copy = mesh.fsdp * mesh.tp * mesh.pp
    if world.size % copy:
        wanted = f"a multiple of the {copy} ranks of a copy (fsdp {mesh.fsdp} × tp {mesh.tp} × pp {mesh.pp})"
        raise UsageError(f"`mesh` does not fit on {world.size} ranks: expected {wanted}", param="mesh")
    dp = world.size // copy
    if job.batch_size < dp * mesh.fsdp:
        readers = dp * mesh.fsdp
        raise UsageError(f"`batch_size: {job.batch_size}` is less than the {readers} ranks", param="batch_size")
    if copy > 1 and job.batch_size % (dp * mesh.fsdp):
        what = f"`batch_size: {job.batch_size}` is not a multiple of {dp * mesh.fsdp} (dp {dp} × fsdp {mesh.fsdp})"
        raise UsageError(what, param="batch_size")
    return RankMesh(world, dp=dp, fsdp=mesh.fsdp, tp=mesh.tp, pp=mesh.pp)


def spread(job: TrainJob, whole: Transformer, mesh: RankMesh) -> SpreadModel:
    """``whole``, which is taken apart, as ``job`` wants it on ``mesh``. Raises UsageError when it cannot be."""
    share = len(mesh.share(job.batch_size))
    layout = Layout(
        rows=job.micro_batch or default_rows(share, job.sequence_length, mesh),
        share=share,
        length=job.sequence_length,
        schedule=job.pipeline.schedule,
        stages_per_rank=job.pipeline.stages_per_rank,
    )
    numerics = Numerics(
        dtype=compute_dtype(job.precision, mesh.world.device),
        weights=weights_dtype(job.precision),
        reduction=torch.bfloat16 if job.gradient_reduction == "bf16" else torch.float32,
        recompute=job.activation_checkpointing,
        compiled=job.compile,
    )
    return SpreadModel(whole, mesh, layout, cross_entropy_sum, numerics)


def default_rows(share: int, length: int, mesh: RankMesh) -> int:
    """Sequences of a micro-batch, given those of a rank's step: what MICRO_BATCH_TOKENS allow.

    A pipeline wants _PARTS_PER_STAGE micro-batches for each of its ranks, all of one size, their number a multiple of
    its ranks; it gets as many as the share can be split into.
    """
    most = max(1, MICRO_BATCH_TOKENS[mesh.world.device.type] // length)
    if mesh.pp == 1:
        return most
    sizes = [rows for rows in range(1, min(most, share) + 1) if share % rows == 0]
    whole = [rows for rows in sizes if share // rows % mesh.pp == 0] or sizes
    return max((rows for rows in whole if share // rows >= _PARTS_PER_STAGE * mesh.pp), default=1)
