"""Causal attention for training on CPUs: matrix products on blocks of queries, with a backward pass of its own.

torch's CPU kernel of ``scaled_dot_product_attention`` is made for long sequences and takes, at 256 tokens and heads of
32, 44 % of a training step. Here each block of queries meets only the keys it may see, in plain batched products, and
the probabilities are kept for the backward pass: 4.4 ms against 14.1 ms forward and backward in bf16, 6.7 against 10.4
in fp32 (4 × 8 heads × 256 tokens × 32, one core of an AMD EPYC with AVX512-BF16, torch 2.13).

Keeping the probabilities costs memory in the square of the sequence, which is why this is for short sequences only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MIN_TOKENS, MAX_TOKENS = 65, 2048
"""Beyond it torch's kernel is as fast, and needs no memory for the probabilities. Below, where there is hardly anything
to skip, it takes 0.83 of the time (12 × 4 heads × 64 tokens × 32 in fp32, one core of an AMD EPYC with AVX2)."""

_SHORT, _SHORT_BLOCK, _BLOCK = 512, 32, 64
"""Measured: blocks of 32 are fastest up to 512 tokens, of 64 above. Smaller ones skip more of the masked half."""


def block_attention(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, first_BT: Tensor | None = None) -> Tensor:
    """softmax(q · kᵀ / √D, causal) · v, shape [B, H, T, D], in the type of ``v``.

    ``first_BT`` [B or 1, T] is the first token of its row that each token sees, where that is not the row's first: of
    its document, or of its window.

    H is a multiple of K: query heads g·H/K … (g+1)·H/K - 1 share key head g (grouped-query attention). Products and
    probabilities are in the type of ``v``: in bf16, scores are rounded once before the softmax, which is fp32 inside.
    """
    with torch.autocast(v_BKTD.device.type, enabled=False):
        q_BHTD, k_BKTD = q_BHTD.to(v_BKTD.dtype), k_BKTD.to(v_BKTD.dtype)
        return _BlockAttention.apply(q_BHTD, k_BKTD, v_BKTD, first_BT)  # type: ignore[no-any-return, no-untyped-call]


class _BlockAttention(torch.autograd.Function):
    """Inside, each of N = B·K groups has G = H/K query heads for its key head; a block has n queries, sees S keys."""

    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, first_BT: Tensor | None) -> Tensor:
        batch, heads, length, dim = q_BHTD.shape
        groups = batch * k_BKTD.shape[1]
        q_NGTD = q_BHTD.reshape(groups, -1, length, dim)
        k_NTD, v_NTD = k_BKTD.reshape(groups, length, dim), v_BKTD.reshape(groups, length, dim)
        out_NGTD, kept = torch.empty_like(q_NGTD, memory_format=torch.contiguous_format), []
        for start, end in _blocks(length):
            q_NMD = q_NGTD[:, :, start:end].reshape(groups, -1, dim)  # M = G·n
            scores_NMS = torch.bmm(q_NMD, k_NTD[:, :end].mT).mul_(dim**-0.5)
            ahead_nn = torch.full((end - start, end - start), -torch.inf, dtype=q_NMD.dtype, device=q_NMD.device)
            scores_NMS.view(groups, -1, end - start, end)[..., start:].add_(ahead_nn.triu_(1))
            if first_BT is not None:
                _hide_before(scores_NMS.view(batch, heads, end - start, end), first_BT[:, start:end])
            p_NMS = torch.softmax(scores_NMS, -1)
            out_NGTD[:, :, start:end] = torch.bmm(p_NMS, v_NTD[:, :end]).view(groups, -1, end - start, dim)
            if any(ctx.needs_input_grad):
                kept.append(p_NMS)
        ctx.save_for_backward(q_NGTD, k_NTD, v_NTD, *kept)
        ctx.shapes = q_BHTD.shape, k_BKTD.shape
        return out_NGTD.view(batch, heads, length, dim)

    @staticmethod
    def backward(ctx: Any, *d_out_BHTD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_NGTD, k_NTD, v_NTD, *kept = ctx.saved_tensors
        groups, _, length, dim = q_NGTD.shape
        d_out_NGTD = d_out_BHTD[0].reshape(q_NGTD.shape)
        d_q_NGTD = torch.empty_like(q_NGTD, memory_format=torch.contiguous_format)
        d_k_NTD, d_v_NTD = torch.zeros_like(k_NTD), torch.zeros_like(v_NTD)
        for (start, end), p_NMS in zip(_blocks(length), kept, strict=True):
            q_NMD = q_NGTD[:, :, start:end].reshape(groups, -1, dim)
            d_out_NMD = d_out_NGTD[:, :, start:end].reshape(groups, -1, dim)
            d_v_NTD[:, :end] += torch.bmm(p_NMS.mT, d_out_NMD)
            d_p_NMS = torch.bmm(d_out_NMD, v_NTD[:, :end].mT)
            d_scores_NMS = torch.ops.aten._softmax_backward_data(d_p_NMS, p_NMS, -1, p_NMS.dtype).mul_(dim**-0.5)
            d_q_NGTD[:, :, start:end] = torch.bmm(d_scores_NMS, k_NTD[:, :end]).view(groups, -1, end - start, dim)
            d_k_NTD[:, :end] += torch.bmm(d_scores_NMS.mT, q_NMD)
        q_shape, k_shape = ctx.shapes
        return d_q_NGTD.view(q_shape), d_k_NTD.view(k_shape), d_v_NTD.view(k_shape), None


def _hide_before(scores_BHnS: Tensor, first_Bn: Tensor) -> None:
    """What is masked here is masked in the backward pass as well: its probability, which that multiplies by, is 0."""
    keys_S = torch.arange(scores_BHnS.shape[-1], device=scores_BHnS.device)
    scores_BHnS.masked_fill_((keys_S < first_Bn[..., None])[:, None], -torch.inf)


def _blocks(length: int) -> list[tuple[int, int]]:
    """Queries ``start`` to ``end`` - 1 of each block."""
    size = _SHORT_BLOCK if length <= _SHORT else _BLOCK
    return [(start, min(start + size, length)) for start in range(0, length, size)]
