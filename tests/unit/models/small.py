"""Small models to try things on."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from llmos.models import ModelConfig, Transformer
from llmos.models.rope_config import Llama3Scaling

SCALING = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=32)
SMALL = ModelConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=112,
    num_layers=3,
    num_heads=8,
    num_kv_heads=2,
    head_dim=16,
    max_position=256,
    bos_token_id=1,
    eos_token_id=2,
)


def make(seed: int = 0, **changes: Any) -> Transformer:
    """A small model whose weights are large enough for every part of it to matter."""
    torch.manual_seed(seed)
    model = Transformer(dataclasses.replace(SMALL, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model
