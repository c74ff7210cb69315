"""Muon: every hidden matrix moves along its momentum made orthogonal (Jordan et al., "Muon", 2024).

``torch.optim.Muon`` makes one matrix after the other orthogonal, and every rank all of them. Here ranks share the
matrices, and those of one shape are one batched product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmos.parallel.mesh import Line
from llmos.train.fused import Mover
from llmos.train.precision import compute_dtype

MOMENTUM = 0.95
"""Jordan's value, and that of Liu et al."""
_ROUNDS = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))
"""Coefficients of x, x³ and x⁵ in each round: what takes all of [0.01, 1] closest to 1 in three rounds, to within 0.27
(Amsel et al., "The Polar Express", arXiv 2505.16932, theorem 3.1). Jordan's five take 1.65 times as long."""


class Muon(Mover):
    """Nesterov momentum, made orthogonal, with updates as large (root mean square) as AdamW's.

    So both share a learning rate and a decay: section 2.2 of Liu et al., "Muon is Scalable for LLM Training" (arXiv
    2502.16982). All ranks of ``copies`` must step together, with the same gradients; each keeps the whole momentum.
    """

    def __init__(self, matrices: list[nn.Parameter], weight_decay: float, copies: Line) -> None:
        super().__init__([{"params": matrices, "weight_decay": weight_decay}])
        self._copies = copies

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            matrices, rate = group["params"], group["lr"]
            buffers = self._remembered(matrices, "momentum_buffer")
            updates = self._orthogonal([_moment(m, buffer) for m, buffer in zip(matrices, buffers, strict=True)])
            for matrix, update in zip(matrices, updates, strict=True):
                size = 0.2 * math.sqrt(max(matrix.shape))
                matrix.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate * size)

    def _orthogonal(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """``matrices`` made orthogonal, bf16: each by one rank, which the others hear from in a sum with zeros.

        Products are bf16 too where the hardware has it: an emulated one took most of a step.
        """
        dtype = compute_dtype("auto", matrices[0].device)
        sizes = [matrix.numel() for matrix in matrices]
        flat = torch.zeros(sum(sizes), dtype=torch.bfloat16, device=matrices[0].device)
        results = [part.view_as(matrix) for part, matrix in zip(flat.split(sizes), matrices, strict=True)]
        for alike in _by_shape(matrices):
            if mine := [alike[i] for i in self._copies.share(len(alike))]:
                done = orthogonal(torch.stack([matrices[i].to(dtype) for i in mine]))
                for i, matrix in zip(mine, done, strict=True):
                    results[i].copy_(matrix)
        self._copies.sum(flat)
        return results


def _moment(matrix: nn.Parameter, buffer: Tensor) -> Tensor:
    """Nesterov's: ``buffer`` is the momentum, which this adds the gradient to."""
    assert matrix.grad is not None
    return matrix.grad.lerp(buffer.lerp_(matrix.grad, 1 - MOMENTUM), MOMENTUM)


def orthogonal(matrices_NRC: Tensor) -> Tensor:
    """``matrices_NRC``, in their type, with their singular values moved towards 1 (the smallest not all the way)."""
    wide = matrices_NRC.shape[1] <= matrices_NRC.shape[2]
    x = matrices_NRC if wide else matrices_NRC.mT
    x = x / (1.01 * x.norm(dim=(1, 2), keepdim=True)).clamp_(min=1e-7)  # 1.01: above 1, rounds diverge
    for a, b, c in _ROUNDS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def _by_shape(matrices: Sequence[Tensor]) -> list[list[int]]:
    """The places in ``matrices`` of those that have the same shape, together."""
    places: dict[torch.Size, list[int]] = {}
    for place, matrix in enumerate(matrices):
        places.setdefault(matrix.shape, []).append(place)
    return list(places.values())
