"""One small random model of every family, as transformers makes it, in the directory that it writes.

    for name, config in families():                  # transformers' configurations, by a name for the test
        write_family(name, directory)                # the model and a tokenizer, as from the hub

Every part matters: weights are large, norms and biases random; windows, and the contexts before scaling, are shorter
than the texts of tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from llmos.models import Tokenizer, train_bpe

CODE = "class Walk:\n    def step(self, n):\n        for i in range(n):\n            yield i * 2 + 10\n\n" * 3
WINDOW = 12
"""Of the families that have one, in tokens."""
ORIGINAL = 32
"""The context before scaling, where there is scaling, in tokens."""

_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_WIDE = {"head_dim": 32}
"""Heads that are wider together than the hidden state."""
_LINEAR = {"rope_type": "linear", "factor": 4.0}
_LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": ORIGINAL,
}
_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": ORIGINAL}
_MSCALE = {"mscale": 1.2, "mscale_all_dim": 0.7, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}
_ALL_LAYERS = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0}

_FAMILIES: dict[str, tuple[type[transformers.PretrainedConfig], dict[str, Any]]] = {
    "llama2": (transformers.LlamaConfig, {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "smollm": (transformers.LlamaConfig, {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48}),
    "llama-linear": (transformers.LlamaConfig, {"rope_parameters": {"rope_theta": 10000.0, **_LINEAR}}),
    "llama3": (transformers.LlamaConfig, {"rope_parameters": {"rope_theta": 500000.0, **_LLAMA3}, **_WIDE}),
    "llama-yarn": (transformers.LlamaConfig, {"rope_parameters": {"rope_theta": 10000.0, **_YARN}}),
    "llama-yarn-mscale": (
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_theta": 1e6, **_YARN, **_MSCALE}, "tie_word_embeddings": False},
    ),
    "mistral": (transformers.MistralConfig, {"sliding_window": WINDOW, "tie_word_embeddings": False, **_WIDE}),
    "mistral-full": (transformers.MistralConfig, {"sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, {"rope_parameters": {"rope_theta": 1e6}}),
    "qwen2-window": (transformers.Qwen2Config, {**_ALL_LAYERS, "tie_word_embeddings": False}),
    "qwen3": (transformers.Qwen3Config, {"rope_parameters": {"rope_theta": 1e6}, **_WIDE}),
    "qwen3-untied-yarn": (
        transformers.Qwen3Config,
        {"rope_parameters": {"rope_theta": 1e6, **_YARN}, "tie_word_embeddings": False, **_WIDE},
    ),
}
NAMES = tuple(_FAMILIES)


@cache
def tokenizer() -> Tokenizer:
    """The tokenizer of all of them."""
    return train_bpe([CODE, "Größe 漢字 🦙\n"], vocab_size=320)


def families() -> Iterator[tuple[str, transformers.PretrainedConfig]]:
    """A name and transformers' configuration of each; embeddings are tied unless the table says otherwise."""
    for name in NAMES:
        yield name, family_config(name)


def family_config(name: str) -> transformers.PretrainedConfig:
    """The configuration of the one called ``name``."""
    kind, changes = _FAMILIES[name]
    ends = {"bos_token_id": tokenizer().bos_id, "eos_token_id": tokenizer().eos_id}
    fields = {"vocab_size": tokenizer().vocab_size, "tie_word_embeddings": True, **ends}
    return kind(**fields | _SHAPE | changes)


@torch.no_grad()
def write_family(name: str, directory: Path, seed: int = 0) -> transformers.PreTrainedModel:
    """Write the one called ``name`` to ``directory``, with a tokenizer; returns transformers' model of it, in fp32."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(family_config(name)).float().eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(8)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(directory)
    tokenizer().save(directory)
    return model
