"""One optimizer step's forward and backward passes: precision, micro-batches, the loss."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmos.models import Transformer
from llmos.train.loss import cross_entropy_sum

MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens per rank and forward pass unless the job says how many sequences. On a CPU, more no longer fit its caches, and
allocations above 32 MiB cost page faults each time."""


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What matrix products are computed in: ``fp32``, ``bf16``, or with ``auto`` bf16 where the hardware has it.

    Without AVX512-BF16 or AMX, bf16 products on a CPU are emulated and slower than fp32.
    """
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            capabilities = torch.cpu.get_capabilities()
            fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        precision = "bf16" if fast else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def windows(tokens: NDArray[np.integer], offsets: NDArray[np.int64], length: int) -> Tensor:
    """Inputs and targets together: ``length`` + 1 tokens from each offset, int64, shape [len(offsets), length + 1]."""
    rows = [np.asarray(tokens[offset : offset + length + 1], dtype=np.int64) for offset in offsets]
    return torch.from_numpy(np.stack(rows))


def micro_batches(samples: Tensor, size: int | None) -> Iterator[Tensor]:
    """``samples`` [B, T+1] in parts of ``size`` sequences (default: MICRO_BATCH_TOKENS); the last may be smaller."""
    tokens = MICRO_BATCH_TOKENS[samples.device.type]
    return iter(samples.split(size or max(1, tokens // (samples.shape[1] - 1))))


def loss_sum(model: Transformer, samples_BW: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Nats to predict tokens 1… of each row from those before it, summed and times ``scale``.

    Negative tokens do not count. Weights stay in fp32; ``dtype`` is that of the products (autocast).
    """
    inputs_BT, targets_BT = samples_BW[:, :-1], samples_BW[:, 1:]
    with torch.autocast(samples_BW.device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        hidden_BTD = model.hidden(inputs_BT.clamp(min=0))
    hidden_ND = hidden_BTD.flatten(0, 1).to(dtype)
    return cross_entropy_sum(hidden_ND, model.output_weight, targets_BT.flatten(), scale)


def accumulate(
    model: Transformer, samples: Tensor, micro_batch: int | None, dtype: torch.dtype, scale: float
) -> Tensor:
    """Add the gradients of ``scale`` × the summed loss of ``samples`` [B, T+1] to ``.grad``. Returns that loss."""
    total = torch.zeros((), device=samples.device)
    for part in micro_batches(samples, micro_batch):
        loss = loss_sum(model, part, dtype, scale)
        loss.backward()
        total += loss.detach()
    return total
