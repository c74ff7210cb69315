"""LoRA: a matrix that stays as it is, with two small ones beside it that are trained (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmos.models.linear import Linear


class LoraLinear(Linear):
    """y = x · Wᵀ + scale · (x · Aᵀ) · Bᵀ with W [out, in] frozen, A [rank, in] random and B [out, rank] zero.

    So it begins as the matrix that it replaces, and W keeps its name.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features)
        self.weight = nn.Parameter(base.weight.detach(), requires_grad=False)
        self.bias = base.bias
        self.scale = scale
        # as nn.Linear, and the reference code; on the CPU, so that every kind of device gets the same
        drawn = nn.init.kaiming_uniform_(torch.empty(rank, base.in_features), a=math.sqrt(5))
        self.lora_A = nn.Parameter(drawn.to(self.weight))
        self.lora_B = nn.Parameter(self.weight.new_zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.adapted(x, self.weight, self.bias, self.lora_A, self.lora_B)

    def adapted(self, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        """y, by this layer's tensors or by parts of them."""
        return self.product(x, weight, bias) + F.linear(F.linear(x, a), b) * self.scale

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The matrix that does the same alone, [out, in]."""
        return self.weight + self.lora_B @ self.lora_A * self.scale
