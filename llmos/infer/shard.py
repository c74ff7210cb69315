"""The weights one rank computes with: its columns, rows and layers, in the form in which a runner wants them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llmos.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Matrix:
    """y = x · wᵀ with w [out, in]: plain, or quantized symmetrically (w = ``weight`` · ``scale``).

    ``bits`` 16 or 32: ``weight`` [out, in] in bfloat16 or float32, no scale. 8: int8 [out, in], ``scale`` [out, 1]
    float32. 4: two values a byte, uint8 [out, in / 2], the even column in the low half, each value stored + 8;
    ``scale`` [out, in / group] float32, for ``group`` columns each.
    """

    weight: Tensor
    bits: int
    scale: Tensor | None = None
    group: int = 0


@dataclass(frozen=True, slots=True)
class LayerShard:
    """One layer. D hidden, H query and K key heads of this rank, E features a head, F of its feed-forward features.

    ``qkv`` is [(H + 2 K) · E, D]: queries, keys, values. ``gate_up`` is [2 F, D]: gate, up. ``out`` [D, H · E] and
    ``down`` [D, F] give partial sums under tensor parallelism. Norms are float32.
    """

    attention_norm_D: Tensor
    qkv: Matrix
    qkv_bias: Tensor | None
    query_norm_E: Tensor | None
    key_norm_E: Tensor | None
    out: Matrix
    mlp_norm_D: Tensor
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class Shard:
    """What one rank of a tp × pp mesh holds of a model.

    ``heads`` and ``kv_heads`` are this rank's; with fewer key heads than ranks, ranks share copies of one. The
    embedding is there on the first pipeline stage; ``norm_D`` and ``output`` (this rank's rows of the vocabulary) on
    the last.
    """

    config: ModelConfig
    heads: int
    kv_heads: int
    first_layer: int
    layers: tuple[LayerShard, ...]
    embedding_VD: Tensor | None
    norm_D: Tensor | None
    output: Matrix | None
