"""What one rank of a tp × pp mesh holds: which heads, features, vocabulary rows and layers. No weights here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmos.errors import UsageError
from llmos.models.config import ModelConfig
from llmos.parallel.layers import split_layers
from llmos.parallel.world import share

FEATURES = 16
"""Feed-forward features are split in multiples of this, where there are enough: kernels have vectors of so many."""


@dataclass(frozen=True, slots=True)
class Split:
    """Ranges of one rank. Heads, key heads, features, rows of the vocabulary and layers are those of the model."""

    heads: range
    kv_heads: range
    features: range
    vocabulary: range
    layers: range


def split(config: ModelConfig, tp: tuple[int, int], pp: tuple[int, int], quantum: int = FEATURES) -> Split:
    """The part of rank ``tp[0]`` of ``tp[1]`` in stage ``pp[0]`` of ``pp[1]``; features in multiples of ``quantum``.

    Ranks need not have the same: key heads go to ranks as evenly as they can, with their query heads. Where ranks
    outnumber key heads, several ranks hold a copy of one, each with some of its query heads.
    Raises UsageError for a mesh that leaves a rank nothing to do.
    """
    (rank, ranks), (stage, stages) = tp, pp
    heads, kv_heads = _heads(config, rank, ranks)
    while quantum > 1 and (config.intermediate_size % quantum or config.intermediate_size // quantum < ranks):
        quantum = quantum // 2
    features = share(config.intermediate_size // quantum, rank, ranks)
    if stages > config.num_layers:
        raise UsageError(f"`pp` is {stages}: expected at most {config.num_layers}, the model's layers", param="pp")
    layers = split_layers(config.num_layers, stages, _output_cost(config))[stage]
    return Split(
        heads,
        kv_heads,
        range(features.start * quantum, features.stop * quantum),
        share(config.vocab_size, rank, ranks),
        layers,
    )


def _heads(config: ModelConfig, rank: int, ranks: int) -> tuple[range, range]:
    all_kv, group = config.num_kv_heads, config.num_heads // config.num_kv_heads
    if ranks <= all_kv:
        kv = share(all_kv, rank, ranks)
        return range(kv.start * group, kv.stop * group), kv
    copies = ranks // all_kv
    if ranks % all_kv or copies > group:
        most = f"at most {all_kv}, the model's key heads, or a multiple of them up to {config.num_heads}"
        raise UsageError(f"`tp` is {ranks}: expected {most}, its query heads", param="tp")
    kv_head, copy = divmod(rank, copies)
    mine = share(group, copy, copies)
    return range(kv_head * group + mine.start, kv_head * group + mine.stop), range(kv_head, kv_head + 1)


def _output_cost(config: ModelConfig) -> float:
    """The output matrix, in layers: what is read for each token."""
    attention = 2 * config.head_dim * (config.num_heads + config.num_kv_heads)
    return config.vocab_size / (attention + 3 * config.intermediate_size)


def aligned(group: int, columns: range) -> int:
    """The largest size of groups of columns, a divisor of ``group``, whose borders those of ``columns`` are."""
    return math.gcd(group, columns.start, len(columns))
