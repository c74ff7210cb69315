"""The families of decoders that are computed here, and what each has that Llama has not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """``hf_class`` is its class in transformers, ``hf_defaults`` what a config.json means that says nothing.

    ``attention_bias``: a bias on queries, keys and values. ``qk_norm``: each head of queries and keys is normalized
    before it is turned. ``window``: tokens may see a sliding window of those before them.
    """

    hf_class: str
    attention_bias: bool = False
    qk_norm: bool = False
    window: bool = False
    hf_defaults: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family("LlamaForCausalLM", hf_defaults={"max_position_embeddings": 2048}),
        "mistral": Family(
            "MistralForCausalLM",
            window=True,
            hf_defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
        ),
        "qwen2": Family(
            "Qwen2ForCausalLM",
            attention_bias=True,
            window=True,
            hf_defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
        ),
        "qwen3": Family(
            "Qwen3ForCausalLM",
            qk_norm=True,
            window=True,
            hf_defaults={
                **{"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
                "head_dim": 128,
            },
        ),
    }
)
"""By ``model_type``, as config.json calls it. SmolLM and Llama 2 and 3 are of the family llama, Qwen2.5 of qwen2."""
