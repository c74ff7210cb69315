"""The shape of a model in plain numbers, and what it takes: parameters and floating-point operations.

The fields are those of ``spec.Preset`` and ``models.ModelConfig``; :meth:`ModelShape.of` takes either.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from llmos.errors import UsageError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense decoder: SwiGLU feed-forward, grouped-query attention, RMS norms; ``attention_bias`` on q, k and v, and
    ``qk_norm`` of their heads, where a family has them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int = 8192
    tie_embeddings: bool = False
    attention_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def of(cls, source: Any, **changes: Any) -> ModelShape:
        """The shape of anything with these fields; ``changes`` replace or add some, such as ``vocab_size``."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: getattr(source, name) for name in known if hasattr(source, name)} | changes)

    @property
    def query_size(self) -> int:
        """Features of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Features of all key heads together, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def layer_products(self) -> int:
        """Weights of a layer's matrices: those that tokens are multiplied with."""
        attention = 2 * self.hidden_size * (self.query_size + self.kv_size)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def layer_parameters(self) -> int:
        """All weights of a layer: its matrices, its norms and biases."""
        small = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        small += self.query_size + 2 * self.kv_size if self.attention_bias else 0
        return self.layer_products + small

    @property
    def vocabulary_parameters(self) -> int:
        """Weights of one of the two vocabulary matrices, the embedding or the output."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All weights; tied embeddings count once."""
        vocabulary = self.vocabulary_parameters * (1 if self.tie_embeddings else 2)
        return self.num_layers * self.layer_parameters + vocabulary + self.hidden_size

    def attention_flops(self, sequence: int) -> float:
        """Forward operations of one layer's attention for one token: q · kᵀ and p · v over the causal half."""
        return 2.0 * sequence * self.query_size

    def training_flops(self, sequence: int) -> float:
        """Operations of forward and backward for one token of a sequence: 6 per weight, and attention's causal half.

        Source: PaLM (arXiv 2204.02311, appendix B) with the causal half only, as Megatron-Bridge counts; nothing that
        is computed twice counts twice.
        """
        products = self.num_layers * self.layer_products + self.vocabulary_parameters
        return 6.0 * products + 3.0 * self.num_layers * self.attention_flops(sequence)


_LLAMA_3 = 128256

SIZES: Mapping[str, ModelShape] = MappingProxyType(
    {
        # HuggingFaceTB/SmolLM-135M, meta-llama/Llama-3.2-1B and -3B, Llama-3.1-8B, -70B and -405B: their config.json
        "135M": ModelShape(49152, 576, 1536, 30, 9, 3, 64, max_position=2048, tie_embeddings=True),
        "1B": ModelShape(_LLAMA_3, 2048, 8192, 16, 32, 8, 64, max_position=131072, tie_embeddings=True),
        "3B": ModelShape(_LLAMA_3, 3072, 8192, 28, 24, 8, 128, max_position=131072, tie_embeddings=True),
        "8B": ModelShape(_LLAMA_3, 4096, 14336, 32, 32, 8, 128, max_position=131072),
        "70B": ModelShape(_LLAMA_3, 8192, 28672, 80, 64, 8, 128, max_position=131072),
        "405B": ModelShape(_LLAMA_3, 16384, 53248, 126, 128, 8, 128, max_position=131072),
    }
)

WIDE, NARROW = 120, 20
"""Features of the stream for each layer: of Llama 3 (8B, 70B, 405B: 128, 102, 130), and of SmolLM-135M (19)."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([MBT])", re.IGNORECASE)
_UNITS = {"M": 1e6, "B": 1e9, "T": 1e12}


def is_size(text: str) -> bool:
    """Whether ``text`` says a number of parameters, as ``8B`` and ``350M`` do."""
    return _SIZE.fullmatch(text) is not None


def shape_of_size(text: str) -> ModelShape:
    """The published shape of that size (:data:`SIZES`), else one near it in the proportions of Llama 3.

    Raises UsageError when ``text`` is not a size between 1M and 10T.
    """
    if known := SIZES.get(text.upper()):
        return known
    match = _SIZE.fullmatch(text)
    wanted = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
    if not 1e6 <= wanted <= 1e13:
        raise UsageError(f"{text[:40]!r} is not a size: expected a number from 1M to 10T, as in `8B` or `350M`")
    small, width = wanted < 1e9, 1024 if wanted >= 1e9 else 256 if wanted >= 1e8 else 64
    shapes = (_of_width(width * n, wanted, small) for n in range(1, 65))
    depth = NARROW if small else WIDE
    return min(shapes, key=lambda shape: _unlikeness(shape, wanted, depth))


def _of_width(hidden: int, wanted: float, small: bool) -> ModelShape:
    """As many layers of ``hidden`` features as come nearest to ``wanted`` parameters, feed-forward 3.5 times as wide.

    Widths are multiples of 1,024 from a billion parameters on, so that tensor parallelism can split the heads 8 ways.
    Below that the vocabulary would be most of the model, so it is smaller and used twice, and heads have 64 features.
    """
    head = 64 if small else 128
    heads = hidden // head
    kv_heads = next(k for k in (8, 4, 2, 1) if heads % k == 0)
    vocab_size = _LLAMA_3 if not small else 49152 if wanted > 5e7 else 4096
    one = ModelShape(vocab_size, hidden, hidden * 7 // 2, 1, heads, kv_heads, head, tie_embeddings=small)
    outside = one.num_parameters - one.layer_parameters
    return dataclasses.replace(one, num_layers=max(1, round((wanted - outside) / one.layer_parameters)))


def _unlikeness(shape: ModelShape, wanted: float, depth: float) -> float:
    """A hundredth of the size off is as bad as proportions that are a tenth off: both on a logarithmic scale."""
    proportions = math.log(shape.hidden_size / shape.num_layers / depth)
    return 10 * abs(math.log(shape.num_parameters / wanted)) + abs(proportions)
