"""Rotary position embeddings (RoPE), in the half-rotation layout of Hugging Face's Llama.

Source: Su et al., arXiv 2104.09864. Linear scaling: arXiv 2306.15595. The scaling of Llama 3.1 is that of Meta's
reference code (``apply_scaling``). YaRN: arXiv 2309.00071, section 3, with the rounding of its reference code.
"""

from __future__ import annotations

import math
from functools import lru_cache

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
    a, b = x_BTHD.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


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
