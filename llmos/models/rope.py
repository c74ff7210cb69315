"""Rotary position embeddings (RoPE), in the half-rotation layout of Hugging Face's Llama.

Source: Su et al., arXiv 2104.09864. Linear scaling: arXiv 2306.15595. The scaling of Llama 3.1 is that of Meta's
reference code (``apply_scaling``). YaRN: arXiv 2309.00071, section 3, with the rounding of its reference code.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from llmos.models.config import ModelConfig
from llmos.models.rope_config import LinearScaling, Llama3Scaling, YarnScaling


def rotations(config: ModelConfig, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of each position's angles, float32, shape [B, T, 1, head_dim / 2] ([T, 1, …] for [T]).

    Under YaRN both are multiplied by its magnitude, which queries and keys then have.
    """
    angles = positions_BT[..., None, None] * _frequencies(config, positions_BT.device)
    if isinstance(config.rope_scaling, YarnScaling):
        return angles.cos() * config.rope_scaling.magnitude, angles.sin() * config.rope_scaling.magnitude
    return angles.cos(), angles.sin()


def rotate(x_BTHD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) of every head by its position's angle. Shape and type stay."""
    cos, sin = rotation
    return cast(Tensor, _Rotation.apply(x_BTHD, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)))  # type: ignore[no-untyped-call]


class _Rotation(torch.autograd.Function):
    """x · cos + swapped(x) · (-sin, sin), with the halves of x swapped. Its gradient turns back.

    Three passes over memory each way; torch's own backward pass of slices and their products takes twice as many.
    """

    @staticmethod
    def forward(ctx: Any, x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return torch.addcmul(x_BTHD * cos, _swapped(x_BTHD), sin)

    @staticmethod
    def backward(ctx: Any, *d_out: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return torch.addcmul(d_out[0] * cos, _swapped(d_out[0]), sin, value=-1), None, None


def _swapped(x_BTHD: Tensor) -> Tensor:
    return x_BTHD.roll(x_BTHD.shape[-1] // 2, -1)


@lru_cache(maxsize=16)
def _frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """Radians per position, float32, shape [head_dim / 2]."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    plain = 1.0 / config.rope_theta**exponents
    match config.rope_scaling:
        case None:
            return plain
        case LinearScaling(factor):
            return plain / factor
        case Llama3Scaling() as scaling:
            share = _llama3_share(plain, scaling)
        case YarnScaling() as scaling:
            share = _yarn_share(plain, scaling, config.rope_theta)
    return (1 - share) * plain / scaling.factor + share * plain


def _llama3_share(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    """How much of each frequency stays: 1 for those that turn often enough within the original context."""
    turns = scaling.original_max_position * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)


def _yarn_share(plain: Tensor, scaling: YarnScaling, theta: float) -> Tensor:
    """The same by YaRN: falling linearly with the number of the pair, from that of beta_fast to that of beta_slow."""
    dim = 2 * len(plain)

    def pair_that_turns(times: float) -> float:
        return dim * math.log(scaling.original_max_position / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    pairs = torch.arange(len(plain), dtype=torch.float32, device=plain.device)
    return 1 - ((pairs - low) / (high - low or 0.001)).clamp(0, 1)
