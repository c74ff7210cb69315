"""From a TrainJob to the values that the capacity model decides on, and back to a mesh."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from llmos.core import capacity
from llmos.core.capacity import Candidate, Hardware, ModelShape, Training
from llmos.models import ModelConfig
from llmos.spec import PRESETS, Mesh, TrainJob, parse
from llmos.spec.load import to_dict

MICRO_BATCH_TOKENS = {"CPU": 1024, "GPU": 16384}
"""Tokens of a forward pass unless the job says how many sequences, as in train/step.py, which needs torch."""
ASSUMED_GPU = "H100"
"""The kind that a job's GPUs are taken for when nothing says which they are."""


def model_shape(job: TrainJob, base_model: Path | None = None) -> ModelShape:
    """The shape that ``job`` trains; ``base_model`` is the directory of ``job.model.ref``. Raises ModelError.

    A model with fresh weights has the vocabulary of the tokenizer that is trained for it.
    """
    if job.model.preset:
        return ModelShape.of(PRESETS[job.model.preset], vocab_size=job.data.vocab_size)
    if base_model is not None:
        return ModelShape.of(ModelConfig.load(base_model))
    return ModelShape.of(ModelConfig.load(str(job.model.config)), vocab_size=job.data.vocab_size)


def training_of(job: TrainJob) -> Training:
    """How ``job`` trains, in the terms of the capacity model."""
    device = "GPU" if job.resources.gpus else "CPU"
    precision = _automatic(device) if job.precision == "auto" else job.precision
    micro_batch = job.micro_batch_size or max(1, MICRO_BATCH_TOKENS[device] // job.sequence_length)
    return Training(
        batch=job.batch_size,
        micro_batch=min(micro_batch, job.batch_size),
        sequence=job.sequence_length,
        precision=precision,
        optimizer=job.optimizer.name,
        cpu=device == "CPU",
    )


def hardware_of(job: TrainJob) -> Hardware:
    """What one rank of ``job`` computes on. Without ``resources.memory``, nothing bounds the memory of a CPU's rank."""
    if job.resources.gpus:
        return capacity.hardware(ASSUMED_GPU)
    memory = job.resources.memory or math.inf
    return dataclasses.replace(capacity.hardware("CPU"), memory_bytes=memory)


def ways(job: TrainJob, shape: ModelShape, kind: Hardware) -> list[Candidate]:
    """The meshes that ``job`` may run on, fastest first: the one it names, or all of ``workers.min`` ranks.

    Raises UsageError that says what would fit when none does.
    """
    training = training_of(job)
    wanted = None if job.mesh == "auto" else core_mesh(job.mesh)
    ranks = job.workers.min if wanted is None else wanted.size
    found = capacity.candidates(
        shape,
        training,
        ranks,
        kind,
        micro_batches=(job.micro_batch_size,) if job.micro_batch_size else range(training.micro_batch, 0, -1),
        allowed=lambda mesh: _supported(mesh) if wanted is None else mesh == wanted,
    )
    if not found:
        raise capacity.refusal(shape, training, ranks, kind, _supported)
    return found


def placed(job: TrainJob, base_model: Path | None = None) -> TrainJob:
    """``job`` with the fastest mesh that fits in the place of ``auto``. Raises UsageError, SpecError, ModelError.

    Where whole copies fit it is data parallel alone, which asks least of the network between ranks.
    """
    if job.mesh != "auto":
        return job
    meshes = [_spec_mesh(way.mesh) for way in ways(job, model_shape(job, base_model), hardware_of(job))]
    copies = [mesh for mesh in meshes if mesh.size == mesh.dp]
    chosen = parse({**to_dict(job), "mesh": (copies or meshes)[0].model_dump()})  # what it cannot be combined with
    assert isinstance(chosen, TrainJob)
    return chosen


def core_mesh(mesh: Mesh) -> capacity.Mesh:
    """The mesh of a spec, in the terms of the capacity model."""
    return capacity.Mesh(mesh.dp, mesh.fsdp, mesh.tp, mesh.pp, mesh.cp)


def _spec_mesh(mesh: capacity.Mesh) -> Mesh:
    return Mesh(**dataclasses.asdict(mesh))


def _supported(mesh: capacity.Mesh) -> bool:
    """Whether a spec may name it: what the trainer cannot do yet, specs refuse."""
    try:
        _spec_mesh(mesh)
    except ValidationError:
        return False
    return True


@cache
def _automatic(device: str) -> str:
    """What ``precision: auto`` comes to: bf16 where the hardware has it, as train/step.py finds out with torch."""
    if device == "GPU":
        return "bf16"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"
