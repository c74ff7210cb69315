"""The shape of a model, as config.json of the Hugging Face layout says it. No torch here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.errors import ModelError
from llmos.files import read_json
from llmos.models import config_hf
from llmos.models.checks import check_positive, is_a, unsupported, wrong
from llmos.models.families import FAMILIES
from llmos.models.rope_config import RopeScaling

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a dense decoder. Raises ModelError, which names the field, for a shape that cannot be.

    ``architecture`` is one of FAMILIES (families.py), which says whether ``attention_bias`` (on queries, keys and
    values), ``qk_norm`` and a ``sliding_window`` belong to it; a token sees itself and the window - 1 before it.
    """

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
    architecture: str = "llama"
    attention_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        for name in _COUNTS:
            check_positive(name, getattr(self, name), (int,))
        for name in ("rope_theta", "norm_eps"):
            check_positive(name, getattr(self, name), (int, float))
        if self.num_heads % self.num_kv_heads:
            raise wrong("num_kv_heads", self.num_kv_heads, f"a divisor of num_heads ({self.num_heads})")
        if self.head_dim % 2:
            raise wrong("head_dim", self.head_dim, "an even number: rotary embeddings turn pairs")
        if not isinstance(self.tie_embeddings, bool):
            raise wrong("tie_embeddings", self.tie_embeddings, "true or false")
        ends = self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)
        for name, token in [("bos_token_id", self.bos_token_id), *(("eos_token_id", end) for end in ends)]:
            if token is not None and not (is_a(token, (int,)) and 0 <= token < self.vocab_size):
                raise wrong(name, token, f"a token below vocab_size ({self.vocab_size})")
        self._check_family()

    def _check_family(self) -> None:
        """What the file of that family cannot say must not be there: it would be lost, or computed by nobody else."""
        if self.architecture not in FAMILIES:
            raise unsupported("architecture", self.architecture, ", ".join(FAMILIES))
        family = FAMILIES[self.architecture]
        for name in ("attention_bias", "qk_norm"):
            if getattr(self, name) is not getattr(family, name):
                expected = f"{getattr(family, name)}, as {self.architecture} has it"
                raise unsupported(name, getattr(self, name), expected)
        if self.sliding_window is not None:
            check_positive("sliding_window", self.sliding_window, (int,))
            if not family.window:
                raise unsupported("sliding_window", self.sliding_window, f"none: {self.architecture} has no window")

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
        small = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        small += self.head_dim * (self.num_heads + 2 * self.num_kv_heads) if self.attention_bias else 0
        layer = attention + 3 * self.hidden_size * self.intermediate_size + small
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
            raise type(error)(f"{path}: {error.message}", hint=error.hint, param=error.param) from error

    @classmethod
    def from_hf(cls, found: Mapping[str, Any]) -> ModelConfig:
        """From the content of a config.json, of transformers 4 or 5. How the weights are stored is not looked at.

        Raises UnsupportedModelError for what is not computed here, ModelError for a shape that cannot be.
        """
        return cls(**config_hf.from_hf(found))

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json (JSON), readable by transformers 4 and 5 and what follows their names."""
        return config_hf.to_hf(self)


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
