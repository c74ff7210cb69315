"""Model FLOPs utilization: what training computes of what the hardware could (PaLM, arXiv 2204.02311, appendix B).

    MFU = tokens/s · operations of the model for a token / (ranks · peak operations/s of a rank)

Operations are those that the model's mathematics needs (:meth:`ModelShape.training_flops`): what activation
checkpointing computes again does not count. The peak is the data sheet's for a GPU that :data:`core.capacity.KINDS`
knows, in the type of the products. CPUs differ too much for one: theirs is what ``llmos estimate --calibrate`` measured
of one core, times the threads of a rank.
"""

from __future__ import annotations

from pathlib import Path

import torch

from llmos.core.capacity import KINDS, ModelShape
from llmos.files import read_json
from llmos.models import ModelConfig
from llmos.parallel.calibrate import kind_name

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def peak_tokens_per_s(
    config: ModelConfig, length: int, dtype: torch.dtype, device: torch.device, ranks: int, calibration: Path | None
) -> float | None:
    """Tokens per second of sequences of ``length`` at an MFU of 1; None when the peak of ``device`` is not known."""
    peak = _gpu_peak(dtype) if device.type == "cuda" else _cpu_peak(dtype, calibration)
    return ranks * peak / ModelShape.of(config).training_flops(length) if peak else None


def _gpu_peak(dtype: torch.dtype) -> float | None:
    kind = KINDS.get(kind_name())
    return kind.peak.get(_NAMES[dtype]) if kind else None


def _cpu_peak(dtype: torch.dtype, calibration: Path | None) -> float | None:
    """Of a rank, whose threads each have a core."""
    measured = (read_json(calibration) or {}).get("CPU", {}) if calibration else {}
    peak = measured.get(f"{_NAMES[dtype]}_flops")
    return peak * torch.get_num_threads() if peak else None
