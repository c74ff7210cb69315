"""What is computed in which type."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmos.errors import DivergenceError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16_weights": torch.bfloat16, "fp16": torch.float16}

_FIRST_SCALE = 2.0**16


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What matrix products are computed in; with ``auto`` bf16 where the hardware has it, else fp32.

    Without AVX512-BF16 or AMX, bf16 products on a CPU are emulated and slower than fp32.
    """
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            capabilities = torch.cpu.get_capabilities()
            fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        precision = "bf16" if fast else "fp32"
    return _DTYPES[precision]


def weights_dtype(precision: str) -> torch.dtype:
    """What weights are kept in between steps, besides the fp32 ones that the optimizer moves."""
    return torch.bfloat16 if precision == "bf16_weights" else torch.float32


@dataclass(slots=True)
class LossScale:
    """Keeps fp16 gradients within fp16's range: the loss is multiplied by ``value``, gradients are divided by it.

    It halves when a gradient is not finite, and that step is skipped; it doubles after ``patience`` steps without.
    Source: Micikevicius et al., "Mixed Precision Training" (arXiv 1710.03740), section 3.2. Fixed at 1 unless ``used``.
    """

    used: bool
    value: float = 1.0
    good_steps: int = 0
    patience: int = 1000

    def __post_init__(self) -> None:
        self.value = _FIRST_SCALE if self.used else 1.0

    def update(self, finite: bool) -> None:
        """Take note of a step. Raises DivergenceError when no scale helps."""
        if not self.used:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good_steps % self.patience == 0:
            self.value *= 2
        if self.value < 1:
            raise DivergenceError("fp16 gradients overflow at any loss scale", hint="Use precision: bf16 or fp32.")
