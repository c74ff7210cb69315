"""The shape of a model, as config.json of the Hugging Face layout says it. No torch here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.errors import ModelError
from llmos.files import read_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ARCHITECTURE = "LlamaForCausalLM"


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How Llama 3.1 and later stretch rotary embeddings beyond ``original_max_position`` (rope_type ``llama3``).

    Wavelengths above original_max_position / low_freq_factor grow by ``factor``, those below
    original_max_position / high_freq_factor stay, those between are interpolated.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_positive(f"rope_scaling.{field.name}", getattr(self, field.name), (int, float))
        if self.high_freq_factor <= self.low_freq_factor:
            found = f"{self.high_freq_factor} and {self.low_freq_factor}"
            raise _wrong("rope_scaling.high_freq_factor", found, "more than low_freq_factor")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a Llama-family decoder. Raises ModelError, which names the field, for a shape that cannot be."""

    vocab_size: int
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
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _check_positive(name, getattr(self, name), (int,))
        for name in ("rope_theta", "norm_eps"):
            _check_positive(name, getattr(self, name), (int, float))
        if self.num_heads % self.num_kv_heads:
            raise _wrong("num_kv_heads", self.num_kv_heads, f"a divisor of num_heads ({self.num_heads})")
        if self.head_dim % 2:
            raise _wrong("head_dim", self.head_dim, "an even number: rotary embeddings turn pairs")
        if not isinstance(self.tie_embeddings, bool):
            raise _wrong("tie_embeddings", self.tie_embeddings, "true or false")
        ends = self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)
        for name, token in [("bos_token_id", self.bos_token_id), *(("eos_token_id", end) for end in ends)]:
            if token is not None and not (_is(token, (int,)) and 0 <= token < self.vocab_size):
                raise _wrong(name, token, f"a token below vocab_size ({self.vocab_size})")

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every token that ends a text."""
        if isinstance(self.eos_token_id, tuple):
            return frozenset(self.eos_token_id)
        return frozenset() if self.eos_token_id is None else frozenset({self.eos_token_id})

    @property
    def num_parameters(self) -> int:
        """Weights of the model; tied embeddings count once."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size

    @classmethod
    def from_preset(
        cls, preset: DataclassInstance, vocab_size: int, bos: int | None, eos: int | tuple[int, ...] | None
    ) -> ModelConfig:
        """The shape of ``preset``, whose fields are named like those here, with a tokenizer's vocabulary."""
        return cls(vocab_size=vocab_size, bos_token_id=bos, eos_token_id=eos, **dataclasses.asdict(preset))

    @classmethod
    def load(cls, directory: str | Path) -> ModelConfig:
        """The shape in ``directory``/config.json. Raises ModelError when it is missing, broken or not supported."""
        path = Path(directory) / "config.json"
        try:
            found = read_json(path)
        except (ValueError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}", hint="Copy the model again.") from error
        if not isinstance(found, dict):
            what = "there is no" if found is None else "not an object:"
            raise ModelError(f"{what} {path}; expected a model in the Hugging Face layout", hint="Check the path.")
        try:
            return cls.from_hf(found)
        except ModelError as error:
            raise ModelError(f"{path}: {error.message}", hint=error.hint, param=error.param) from error

    @classmethod
    def from_hf(cls, found: Mapping[str, Any]) -> ModelConfig:
        """From the content of a config.json, of transformers 4 or 5. Raises ModelError for what is not supported."""
        _refuse_unsupported(found)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            _check_positive(name, found.get(name), (int,))
        heads, rope = found["num_attention_heads"], _rope(found)
        eos = found.get("eos_token_id")
        return cls(
            vocab_size=found["vocab_size"],
            hidden_size=found["hidden_size"],
            intermediate_size=found["intermediate_size"],
            num_layers=found["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=_or(found.get("num_key_value_heads"), heads),
            head_dim=_or(found.get("head_dim"), found["hidden_size"] // heads),
            max_position=found.get("max_position_embeddings", 2048),
            rope_theta=rope.get("rope_theta", 10000.0),
            norm_eps=found.get("rms_norm_eps", 1e-6),
            tie_embeddings=found.get("tie_word_embeddings", False),
            bos_token_id=found.get("bos_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            rope_scaling=_rope_scaling(rope),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json (JSON), readable by transformers 4 and 5 and what follows their names."""
        eos, scaling = self.eos_token_id, self.rope_scaling
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position,
            "rope_theta": self.rope_theta,
            "rope_scaling": None if scaling is None else _scaling_to_hf(scaling),
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
        }


_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "max_position",
)

_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "quantization_config": (),
    "partial_rotary_factor": (1, 1.0),
}
"""What fields of config.json may say; each may also be absent or null."""


def _refuse_unsupported(found: Mapping[str, Any]) -> None:
    architectures = found.get("architectures")
    if architectures and architectures != [ARCHITECTURE]:
        raise _wrong("architectures", json.dumps(architectures), f'["{ARCHITECTURE}"]')
    if not architectures and found.get("model_type") is None:
        raise _wrong("architectures", "nothing", f'["{ARCHITECTURE}"]')
    for name, values in _SUPPORTED.items():
        value = found.get(name)
        if value is not None and value not in values:
            allowed = " or ".join(dict.fromkeys(json.dumps(v) for v in values)) or "none: weights in plain floats"
            raise _wrong(name, json.dumps(value, default=str)[:80], allowed)


def _rope(found: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding's parameters in one dict: transformers 5 writes it so, transformers 4 spreads them."""
    parts: dict[str, Any] = {"rope_theta": found["rope_theta"]} if "rope_theta" in found else {}
    for name in ("rope_scaling", "rope_parameters"):
        part = found.get(name)
        if part is not None and not isinstance(part, Mapping):
            raise _wrong(name, json.dumps(part, default=str)[:80], "an object")
        parts |= part or {}
    return parts


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise _wrong("rope_scaling.rope_type", kind, "llama3 or default")
    for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        _check_positive(f"rope_scaling.{name}", rope.get(name), (int, float))
    return RopeScaling(
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        rope["original_max_position_embeddings"],
    )


def _scaling_to_hf(scaling: RopeScaling) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position,
    }


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _is(value: object, kinds: tuple[type, ...]) -> bool:
    """Whether ``value`` is one of ``kinds``; True and False are no numbers here."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def _check_positive(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    if not (_is(value, kinds) and value > 0):
        raise _wrong(name, value, "a positive " + ("number" if float in kinds else "whole number"))


def _wrong(name: str, found: object, expected: str) -> ModelError:
    hint = "llmos runs dense Llama-family models."
    return ModelError(f"`{name}` is {found}: expected {expected}", hint=hint, param=name)
