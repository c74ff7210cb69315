"""Model shapes that have a name. Plain numbers: no torch, so that the CLI can show and check them at once.

The field names are those of ``models.ModelConfig``; the vocabulary comes from the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Preset:
    """The shape of a Llama-family decoder."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # for tests: trains a step in milliseconds
        "nano": Preset(64, 176, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, max_position=1024),
        # learns to write text within minutes on two CPU cores
        "tiny": Preset(256, 704, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=64, max_position=1024),
        # the shape of SmolLM-135M (huggingface.co/HuggingFaceTB/SmolLM-135M)
        "small": Preset(576, 1536, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, max_position=2048),
        # the shape of Llama-3.2-1B (huggingface.co/meta-llama/Llama-3.2-1B), with its pre-training context
        "1b": Preset(
            2048, 8192, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64, max_position=8192, rope_theta=500000.0
        ),
    }
)
