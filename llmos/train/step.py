"""One optimizer step's forward and backward passes: precision, micro-batches, the loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llmos.models import Transformer
from llmos.train.batch import Batch
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


def micro_batches(batch: Batch, size: int | None) -> Iterator[Batch]:
    """``batch`` in parts of ``size`` sequences (default: MICRO_BATCH_TOKENS); the last may be smaller."""
    tokens = MICRO_BATCH_TOKENS[batch.tokens_BT.device.type]
    return batch.split(size or max(1, tokens // batch.tokens_BT.shape[1]))


def loss_sum(model: Transformer, batch: Batch, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Nats to predict the targets that count, summed and times ``scale``.

    Weights stay in fp32; ``dtype`` is that of the products (autocast).
    """
    with torch.autocast(batch.tokens_BT.device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        hidden_BTD = model.hidden(batch.tokens_BT, documents_BT=batch.documents_BT)
    hidden_ND = hidden_BTD.flatten(0, 1).to(dtype)
    return cross_entropy_sum(hidden_ND, model.output_weight, batch.targets_BT.flatten(), scale)


def accumulate(model: Transformer, batch: Batch, micro_batch: int | None, dtype: torch.dtype, scale: float) -> Tensor:
    """Add the gradients of ``scale`` × the summed loss of ``batch`` to ``.grad``. Returns that loss."""
    total = torch.zeros((), device=batch.tokens_BT.device)
    for part in micro_batches(batch, micro_batch):
        loss = loss_sum(model, part, dtype, scale)
        loss.backward()
        total += loss.detach()
    return total
