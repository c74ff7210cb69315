"""Cross entropy of a large vocabulary without ever holding the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 1024
"""Tokens whose logits exist at one time: 16 MiB in fp32 for 4,096 tokens of vocabulary."""


def cross_entropy_sum(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float = 1.0) -> Tensor:
    """Sum over N of -log softmax(hidden · weightᵀ)[target], in nats, times ``scale``. Targets below 0 do not count.

    The gradient is computed together with the value, chunk by chunk, so logits are made once and never kept (the idea
    of Liger Kernel's fused linear cross entropy, arXiv 2410.10989). Softmax is in fp32 whatever the precision of
    ``hidden``; matrix products are in ``hidden``'s.
    """
    return _CrossEntropySum.apply(hidden_ND, weight_VD, targets_N, scale)  # type: ignore[no-any-return, no-untyped-call]


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float) -> Tensor:
        differentiate, of_weight = any(ctx.needs_input_grad[:2]), ctx.needs_input_grad[1]
        cast_VD = weight_VD.to(hidden_ND.dtype)
        total = torch.zeros((), device=hidden_ND.device)
        d_hidden_ND = torch.empty_like(hidden_ND) if differentiate else None
        d_weight_VD = torch.zeros_like(weight_VD) if of_weight else None  # frozen beside adapters
        for start in range(0, len(hidden_ND), CHUNK):
            rows = slice(start, start + CHUNK)
            loss, d_logits_NV = _chunk(hidden_ND[rows], cast_VD, targets_N[rows], scale, differentiate)
            total += loss
            if d_logits_NV is not None and d_hidden_ND is not None:
                torch.mm(d_logits_NV, cast_VD, out=d_hidden_ND[rows])
            if d_logits_NV is not None and d_weight_VD is not None:
                d_weight_VD += d_logits_NV.T @ hidden_ND[rows]
        ctx.save_for_backward(d_hidden_ND, d_weight_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *d_total: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        of_weight = None if d_weight_VD is None else d_weight_VD * d_total[0]
        return d_hidden_ND * d_total[0].to(d_hidden_ND.dtype), of_weight, None, None


def _chunk(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of some rows, and its derivative by their logits in the precision of ``hidden_ND``."""
    logits_NV = (hidden_ND @ weight_VD.T).float()
    counted_N = (targets_N >= 0).float() * scale
    index_N1 = targets_N.clamp(min=0)[:, None]
    highest_N1 = logits_NV.amax(1, keepdim=True)
    at_target_N1 = logits_NV.gather(1, index_N1) - highest_N1
    logits_NV.sub_(highest_N1).exp_()  # logits no more: one pass of exp serves the loss and its derivative
    sums_N1 = logits_NV.sum(1, keepdim=True)
    loss = ((sums_N1.log() - at_target_N1)[:, 0] * counted_N).sum()
    if not differentiate:
        return loss, None
    d_logits_NV = logits_NV.mul_(counted_N[:, None] / sums_N1)
    d_logits_NV.scatter_add_(1, index_N1, -counted_N[:, None])
    return loss, d_logits_NV.to(hidden_ND.dtype)
