"""How a training job is spread and computed: the pipeline's schedule, and the rules that a mesh has to keep.

What can be said from numbers alone is said here, before anything runs; ``llmos.parallel`` checks the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llmos.spec.base import Conflict, PositiveInt, Strict
from llmos.spec.presets import PRESETS

if TYPE_CHECKING:
    from llmos.spec.train_job import TrainJob

Precision = Literal["auto", "fp32", "bf16", "bf16_weights", "fp16"]
ActivationCheckpointing = Literal["none", "selective", "full"]
_LOOPED = ("interleaved", "zero_bubble")


def _stages_fit_schedule(pipeline: Pipeline) -> Iterator[Conflict]:
    if pipeline.schedule not in _LOOPED and pipeline.stages_per_rank > 1:
        which = f"`schedule: {pipeline.schedule}` runs 1 stage a rank, not {pipeline.stages_per_rank}"
        yield ("stages_per_rank",), f"{which}: expected `schedule` to be {' or '.join(_LOOPED)}"


class Pipeline(Strict):
    """How micro-batches flow through the stages of a mesh with ``pp`` > 1."""

    schedule: Literal["gpipe", "1f1b", "interleaved", "zero_bubble"] = Field(
        default="1f1b", description="the order of forward and backward passes"
    )
    stages_per_rank: PositiveInt = Field(default=1, description="parts of the model on each rank (interleaved stages)")

    rules = (_stages_fit_schedule,)


def workers_fit_mesh(job: TrainJob) -> Iterator[Conflict]:
    """``workers`` allows as many ranks as the mesh has."""
    mesh, workers = job.placed_mesh, job.workers
    if not workers.min <= mesh.size <= workers.max and workers.min <= workers.max:
        yield ("mesh",), f"`mesh` has {mesh.size} ranks: expected {workers.min} to {workers.max}, as `workers` says"


def batch_splits_evenly(job: TrainJob) -> Iterator[Conflict]:
    """The batch splits over data-parallel ranks, and a rank's share into micro-batches, enough for the pipeline."""
    mesh, micro = job.placed_mesh, job.micro_batch
    share = f"the {job.batch_size // mesh.readers} sequences of a rank (batch_size {job.batch_size} / {_readers(job)})"
    if job.batch_size % mesh.readers:
        which = f"the {mesh.readers} data-parallel ranks" + (f" ({_readers(job)})" if mesh.fsdp > 1 else "")
        yield ("batch_size",), f"`batch_size: {job.batch_size}` is not a multiple of {which}"
    elif micro and job.batch_size // mesh.readers % micro:
        yield ("micro_batch_size",), f"`micro_batch_size: {micro}` does not divide {share}"
    elif (parts := job.batch_size // mesh.readers // (micro or 1)) < mesh.pp:
        yield ("mesh",), f"{share} are {parts} micro-batches: expected at least as many as `pp: {mesh.pp}`"
    elif micro and job.pipeline.schedule in _LOOPED and mesh.pp > 1 and parts % (rounds := parts // mesh.pp):
        needs = f"`schedule: {job.pipeline.schedule}` needs a multiple of {rounds}, such as a multiple of pp {mesh.pp}"
        yield ("micro_batch_size",), f"{share} are {parts} micro-batches: {needs}"


def _readers(job: TrainJob) -> str:
    mesh = job.placed_mesh
    return f"dp {mesh.dp}" + (f" × fsdp {mesh.fsdp}" if mesh.fsdp > 1 else "")


def mesh_fits_preset(job: TrainJob) -> Iterator[Conflict]:
    """The preset's heads divide over tp, and it has a layer for each pipeline stage."""
    preset, mesh = PRESETS.get(job.model.preset or ""), job.placed_mesh
    if preset is None:
        return
    for what, count in (("heads", preset.num_heads), ("key and value heads", preset.num_kv_heads)):
        if count % mesh.tp:
            which = f"`mesh`: `tp: {mesh.tp}` does not divide the {count} {what} of preset `{job.model.preset}`"
            yield ("mesh",), which
            break
    stages = mesh.pp * job.pipeline.stages_per_rank
    if mesh.pp > 1 and preset.num_layers < stages:
        asked = f"`mesh`: pp {mesh.pp} × {job.pipeline.stages_per_rank} stages a rank need {stages} layers"
        yield ("mesh",), f"{asked}; preset `{job.model.preset}` has {preset.num_layers}"


def sequence_splits_evenly(job: TrainJob) -> Iterator[Conflict]:
    """tp ranks share the sequence between layers."""
    if job.sequence_length % job.placed_mesh.tp:
        which = f"a multiple of `tp: {job.placed_mesh.tp}`, whose ranks share each sequence"
        yield ("sequence_length",), f"`sequence_length: {job.sequence_length}`: expected {which}"


def combinations_work(job: TrainJob) -> Iterator[Conflict]:
    """What cannot be combined, and what can be instead."""
    mesh = job.placed_mesh
    if job.optimizer.name == "muon" and mesh.fsdp * mesh.tp > 1:
        why = "Muon needs whole matrices, which `fsdp` and `tp` split"
        yield ("optimizer",), f"`optimizer.name: muon` with a mesh of {_split(job)}: {why}; use `dp`, `pp`, or `adamw`"
    if mesh.pp > 1 and job.pipeline.schedule == "zero_bubble":
        if job.compile:
            why = "compiled layers cannot split their backward pass (pytorch#161904)"
            yield ("compile",), f"`compile: true` with `pipeline.schedule: zero_bubble`: {why}; use `interleaved`"
        if job.activation_checkpointing == "selective":
            why = "what is kept can be used by one backward pass only, and this schedule runs two"
            which = "`activation_checkpointing: selective` with `pipeline.schedule: zero_bubble`"
            yield ("activation_checkpointing",), f"{which}: {why}; use `full` or `none`, or `schedule: interleaved`"
    if job.precision in ("bf16_weights", "fp16") and job.optimizer.name == "muon":
        yield ("precision",), f"`precision: {job.precision}` with `optimizer.name: muon`: expected fp32 or bf16"


def _split(job: TrainJob) -> str:
    mesh = job.placed_mesh
    return " × ".join(f"{axis} {size}" for axis in ("fsdp", "tp") if (size := getattr(mesh, axis)) > 1)


RULES = (
    workers_fit_mesh,
    batch_splits_evenly,
    mesh_fits_preset,
    sequence_splits_evenly,
    combinations_work,
)
