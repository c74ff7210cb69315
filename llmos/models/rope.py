"""Rotary position embeddings (RoPE), in the half-rotation layout of Hugging Face's Llama.

Source: Su et al., arXiv 2104.09864; the scaling of Llama 3.1 is that of Meta's reference code (``apply_scaling``).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from llmos.models.config import ModelConfig, RopeScaling


def rotations(config: ModelConfig, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of each position's angles, float32, shape [B, T, 1, head_dim / 2] ([T, 1, …] for [T])."""
    angles = positions_BT[..., None, None] * _frequencies(config, positions_BT.device)
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
    return plain if config.rope_scaling is None else _stretched(plain, config.rope_scaling)


def _stretched(plain: Tensor, scaling: RopeScaling) -> Tensor:
    turns = scaling.original_max_position * plain / (2 * math.pi)  # within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share = ((turns - low) / (high - low)).clamp(0, 1)  # 1: turns often enough to stay as it is
    return (1 - share) * plain / scaling.factor + share * plain
