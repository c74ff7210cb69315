"""Matrix products of training in fp32 on CPUs with AVX512: by oneDNN, where torch takes MKL.

On an AMD EPYC with AVX512 oneDNN is 8 to 20 % faster at y = x · wᵀ and at the gradient of x, for 1,024 tokens of 320 to
864 features on one core (torch 2.13); at the gradient of w MKL is as fast or faster, and stays. On one with AVX2 only,
MKL is as fast at the first and up to 47 % faster at the second.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRODUCT = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""oneDNN's product, which torch.compile uses as well; None in builds without oneDNN."""
FASTER = PRODUCT is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether this machine's oneDNN outdoes MKL."""


class Linear(nn.Linear):
    """y = x · wᵀ, plus a bias if there is one.

    ``whole_backward`` says that the gradients of x and w are computed together, as they are but in schedules that put
    off the latter: here each of them would then be computed twice.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)
        self.whole_backward = True

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x · wᵀ + b; ``weight`` and ``bias`` are this layer's, or a part of them."""
        if self.whole_backward and _by_onednn(x, weight):
            y = cast(Tensor, _Product.apply(x, weight))  # type: ignore[no-untyped-call]
            return y if bias is None else y + bias
        return F.linear(x, weight, bias)


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    plain = type(x) is Tensor and type(weight) in (Tensor, nn.Parameter)  # no DTensor
    trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    fp32 = x.device.type == "cpu" and x.dtype is weight.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    return plain and trained and fp32 and FASTER and not torch.compiler.is_compiling()


def _product(x_ND: Tensor, weight_VD: Tensor) -> Tensor:
    assert PRODUCT is not None
    return cast(Tensor, PRODUCT(x_ND, weight_VD, None, "none", [], ""))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x.flatten(0, -2), weight).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *d_out: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        d_out_NV = d_out[0].flatten(0, -2)
        d_x = _product(d_out_NV, weight.t()).view_as(x) if ctx.needs_input_grad[0] else None
        return d_x, d_out_NV.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
