"""config.json of the Hugging Face layout: what it means here, and how a shape is written there. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmos.models.checks import check_positive, is_a, unsupported, wrong
from llmos.models.families import FAMILIES
from llmos.models.rope_config import rope_from_hf, scaling_to_hf

if TYPE_CHECKING:
    from llmos.models.config import ModelConfig

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of layers in ``layer_types``."""

_ONLY: Mapping[str, tuple[tuple[str, ...], Any]] = {
    "hidden_act": (tuple(FAMILIES), "silu"),
    "attention_bias": (("llama", "qwen3"), False),  # there it puts one on the output as well; Qwen2 has its own always
    "mlp_bias": (("llama",), False),
}
"""Fields that may only say one thing in some families; they may also be absent or null."""


def from_hf(found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ModelConfig by a config.json of transformers 4 or 5.

    Raises UnsupportedModelError, with the field, for what is not computed here, and ModelError for what cannot be.
    """
    architecture = _architecture(found)
    family = FAMILIES[architecture]
    for name, (families, value) in _ONLY.items():
        if architecture in families and found.get(name) not in (None, value):
            raise unsupported(name, json.dumps(found[name], default=str), json.dumps(value))
    found = {**family.hf_defaults, **found}
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        check_positive(name, found.get(name), (int,))
    heads, eos = found["num_attention_heads"], found.get("eos_token_id")
    theta, scaling = rope_from_hf(found, found["max_position_embeddings"])
    return {
        "architecture": architecture,
        "vocab_size": found["vocab_size"],
        "hidden_size": found["hidden_size"],
        "intermediate_size": found["intermediate_size"],
        "num_layers": found["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": _or(found.get("num_key_value_heads"), heads),
        "head_dim": _or(found.get("head_dim"), found["hidden_size"] // heads),
        "max_position": found["max_position_embeddings"],
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": found.get("rms_norm_eps", 1e-6),
        "attention_bias": family.attention_bias,
        "qk_norm": family.qk_norm,
        "sliding_window": _window(found, architecture) if family.window else None,
        "tie_embeddings": found.get("tie_word_embeddings", False),
        "bos_token_id": found.get("bos_token_id"),
        "eos_token_id": tuple(eos) if isinstance(eos, list) else eos,
    }


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json (JSON), readable by transformers 4 and 5 and what follows their names."""
    eos, scaling = config.eos_token_id, config.rope_scaling
    return {
        "architectures": [FAMILIES[config.architecture].hf_class],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else scaling_to_hf(scaling),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "hidden_act": "silu",
        **{name: value for name, (families, value) in _ONLY.items() if config.architecture in families},
        **_window_to_hf(config),
    }


def _architecture(found: Mapping[str, Any]) -> str:
    """The family, by ``architectures`` or else ``model_type``, which must agree where both are there."""
    classes, kind = found.get("architectures"), found.get("model_type")
    if classes or kind is None:
        expected = " or ".join(f'["{family.hf_class}"]' for family in FAMILIES.values())
        named = next((name for name, family in FAMILIES.items() if [family.hf_class] == classes), None)
        if named is None:
            raise unsupported("architectures", json.dumps(classes) if classes else "nothing", expected)
        if kind not in (None, named):
            raise unsupported("model_type", json.dumps(kind), f'"{named}", as `architectures` says')
        return named
    if kind not in FAMILIES:
        raise unsupported("model_type", json.dumps(kind), " or ".join(f'"{name}"' for name in FAMILIES))
    return str(kind)


def _window(found: Mapping[str, Any], architecture: str) -> Any:
    """The sliding window, which all layers must have or none; Qwen's has a switch and a first layer of its own."""
    qwen, window, layers = architecture != "mistral", found.get("sliding_window"), found["num_hidden_layers"]
    if window is None or (qwen and not found.get("use_sliding_window")):
        return None
    if found.get("layer_types"):
        name, kinds = "layer_types", {str(kind) for kind in found["layer_types"]}
    else:
        name, full = "max_window_layers", found.get("max_window_layers", 28) if qwen else 0
        if not is_a(full, (int,)):
            raise wrong(name, full, "a whole number")
        kinds = {SLIDING if layer >= full else FULL for layer in range(layers)}
    if kinds not in ({FULL}, {SLIDING}):
        raise unsupported(name, json.dumps(found.get(name, 28)), "one kind of attention in all layers, full or sliding")
    return None if kinds == {FULL} else window


def _window_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Mistral says it plainly; Qwen switches it on, from the first layer on. Llama has none."""
    window, layers = config.sliding_window, config.num_layers
    if config.architecture == "llama":
        return {}
    if config.architecture == "mistral":
        return {"sliding_window": window}
    kind, full = (FULL, layers) if window is None else (SLIDING, 0)
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": full,
        "layer_types": [kind] * layers,
    }


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
