"""Cross entropy of a large vocabulary without ever holding the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmos.parallel.vocabulary import Vocabulary

CHUNK = 1024
"""Tokens whose logits exist at one time: 16 MiB in fp32 for 4,096 tokens of vocabulary."""


def cross_entropy_sum(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    scale: float = 1.0,
    vocabulary: Vocabulary | None = None,
) -> Tensor:
    """Sum over N of -log softmax(hidden · weightᵀ)[target], in nats, times ``scale``. Targets below 0 do not count.

    The gradient is computed together with the value, chunk by chunk, so logits are made once and never kept (the idea
    of Liger Kernel's fused linear cross entropy, arXiv 2410.10989). Softmax is in fp32 whatever the precision of
    ``hidden``; matrix products are in ``hidden``'s.

    Where the rows of ``weight`` are part of a ``vocabulary`` split over ranks, every rank gets the whole loss, the
    gradient of its rows, and its summand of the gradient of ``hidden``. Logits are never sent: two numbers a token are.
    """
    args = hidden_ND, weight_VD, targets_N, scale, vocabulary
    return _CrossEntropySum.apply(*args)  # type: ignore[no-any-return, no-untyped-call]


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        scale: float,
        vocabulary: Vocabulary | None,
    ) -> Tensor:
        differentiate, of_weight = any(ctx.needs_input_grad[:2]), ctx.needs_input_grad[1]
        cast_VD = weight_VD.to(hidden_ND.dtype)
        total = torch.zeros((), device=hidden_ND.device)
        d_hidden_ND = torch.empty_like(hidden_ND) if differentiate else None
        # no gradient for a matrix that is frozen beside adapters
        d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if of_weight else None
        for start in range(0, len(hidden_ND), CHUNK):
            rows = slice(start, start + CHUNK)
            logits_NV = (hidden_ND[rows] @ cast_VD.T).float()
            loss, d_logits_NV = _chunk(logits_NV, targets_N[rows], scale, vocabulary, differentiate)
            total += loss
            if d_logits_NV is not None and d_hidden_ND is not None:
                d_logits_NV = d_logits_NV.to(hidden_ND.dtype)
                torch.mm(d_logits_NV, cast_VD, out=d_hidden_ND[rows])
                if d_weight_VD is not None:
                    d_weight_VD += d_logits_NV.T @ hidden_ND[rows]
            del logits_NV, d_logits_NV  # or they would still be there while the next chunk's are made
        ctx.save_for_backward(d_hidden_ND, d_weight_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *d_total: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        d_weight = None if d_weight_VD is None else d_weight_VD * d_total[0]
        return d_hidden_ND * d_total[0].to(d_hidden_ND.dtype), d_weight, None, None, None


def _chunk(
    logits_NV: Tensor, targets_N: Tensor, scale: float, vocabulary: Vocabulary | None, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of some rows, and its derivative by their logits, which are overwritten."""
    counted_N1 = (targets_N >= 0).float()[:, None] * scale
    mine_N1, index_N1 = _targets(targets_N, logits_NV.shape[1], vocabulary)
    highest_N1 = logits_NV.amax(1, keepdim=True)
    if vocabulary:
        vocabulary.largest(highest_N1)
    at_target_N1 = logits_NV.gather(1, index_N1) - highest_N1
    logits_NV.sub_(highest_N1).exp_()  # logits no more: one pass of exp serves the loss and its derivative
    sums_N1 = logits_NV.sum(1, keepdim=True)
    if vocabulary:
        sums_N1, at_target_N1 = vocabulary.sum(torch.stack((sums_N1, at_target_N1 * mine_N1)))
    loss = ((sums_N1.log() - at_target_N1) * counted_N1).sum()
    if not differentiate:
        return loss, None
    d_logits_NV = logits_NV.mul_(counted_N1 / sums_N1)
    d_logits_NV.scatter_add_(1, index_N1, -counted_N1 if vocabulary is None else -counted_N1 * mine_N1)
    return loss, d_logits_NV


def _targets(targets_N: Tensor, rows: int, vocabulary: Vocabulary | None) -> tuple[Tensor, Tensor]:
    """Whether this rank's ``rows`` of the vocabulary hold each target (1 or 0), and at which of them; [N, 1] each."""
    index_N1 = targets_N[:, None] - (vocabulary.first if vocabulary else 0)
    mine_N1 = ((index_N1 >= 0) & (index_N1 < rows)).float()
    return mine_N1, index_N1.clamp(0, rows - 1)
