"""From a TrainJob to the values that the capacity model decides on, and back to a mesh."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from llmos.core import capacity
from llmos.core.capacity import Hardware, ModelShape, Training
from llmos.models import ModelConfig
from llmos.spec import PRESETS, TrainJob

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
        block_attention=device == "CPU" and job.sequence_length <= 2048,
    )


def hardware_of(job: TrainJob) -> Hardware:
    """What one rank of ``job`` computes on."""
    return capacity.hardware(ASSUMED_GPU if job.resources.gpus else "CPU")


@cache
def _automatic(device: str) -> str:
    """What ``precision: auto`` comes to: bf16 where the hardware has it, as train/step.py finds out with torch."""
    if device == "GPU":
        return "bf16"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"
