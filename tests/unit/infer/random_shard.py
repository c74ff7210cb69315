"""Random shards of every shape, and what they compute, in the plainest way."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmos.infer.shard import LayerShard, Matrix, Shard
from llmos.infer.step import BLOCK_TOKENS, Step
from llmos.models import ModelConfig
from llmos.models.packed_layout import dequantize
from llmos.models.rope import rotate, rotations

SHAPE = ModelConfig(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    max_position=1024,
)


def random_shard(
    config: ModelConfig, bits: int = 32, group: int = 16, *, bias: bool = False, norms: bool = False
) -> Shard:
    """A whole model whose every part matters."""
    torch.manual_seed(0)
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, features = config.hidden_size, config.intermediate_size

    def layer() -> LayerShard:
        return LayerShard(
            1 + 0.3 * torch.randn(hidden),
            random_matrix(queries + 2 * keys, hidden, bits, group),
            torch.randn(queries + 2 * keys) if bias else None,
            1 + 0.3 * torch.randn(config.head_dim) if norms else None,
            1 + 0.3 * torch.randn(config.head_dim) if norms else None,
            random_matrix(hidden, queries, bits, group),
            1 + 0.3 * torch.randn(hidden),
            random_matrix(2 * features, hidden, bits, group),
            random_matrix(hidden, features, bits, group),
        )

    dtype = torch.float32 if bits == 32 else torch.bfloat16
    return Shard(
        config,
        config.num_heads,
        config.num_kv_heads,
        0,
        tuple(layer() for _ in range(config.num_layers)),
        torch.randn(config.vocab_size, hidden).to(dtype),
        1 + 0.3 * torch.randn(hidden),
        random_matrix(config.vocab_size, hidden, max(bits, 16), group),
    )


def random_matrix(outputs: int, inputs: int, bits: int, group: int) -> Matrix:
    """Of a size that neither grows nor shrinks what goes through it."""
    if bits > 8:
        weight = torch.randn(outputs, inputs) * inputs**-0.5
        return Matrix(weight if bits == 32 else weight.bfloat16(), bits)
    if bits == 8:
        scale = (0.5 + torch.rand(outputs, 1)) * inputs**-0.5 / 64
        return Matrix(torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8), 8, scale)
    scale = (0.5 + torch.rand(outputs, inputs // group)) * inputs**-0.5 / 4
    return Matrix(torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8), 4, scale, group)


def plain(matrix: Matrix) -> Tensor:
    """The weights [out, in], float32."""
    if matrix.scale is None:
        return matrix.weight.float()
    values = matrix.weight
    if matrix.bits == 4:
        values = torch.stack((values & 15, values >> 4), dim=-1).flatten(1).to(torch.int8) - 8
    return dequantize(values, matrix.scale)


def logits_of(shard: Shard, tokens_T: Tensor) -> Tensor:
    """Logits [T, V] of a text, float32, without a cache."""
    config = shard.config
    assert shard.embedding_VD is not None and shard.norm_D is not None and shard.output is not None
    positions_T = torch.arange(len(tokens_T))
    back_TT = positions_T[:, None] - positions_T
    seen_TT = (back_TT >= 0) & (back_TT < (config.sliding_window or len(tokens_T)))
    rotation = tuple(part.float() for part in rotations(config, positions_T))
    x_TD = shard.embedding_VD.float()[tokens_T]
    for layer in shard.layers:
        x_TD = x_TD + _attention(
            shard, layer, _norm(x_TD, layer.attention_norm_D, config), (rotation[0], rotation[1]), seen_TT
        )
        gate, up = F.linear(_norm(x_TD, layer.mlp_norm_D, config), plain(layer.gate_up)).chunk(2, dim=1)
        x_TD = x_TD + F.linear(F.silu(gate) * up, plain(layer.down))
    return F.linear(_norm(x_TD, shard.norm_D, config), plain(shard.output))


def _norm(x: Tensor, weight: Tensor, config: ModelConfig) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, config.norm_eps)


def _attention(
    shard: Shard, layer: LayerShard, x_TD: Tensor, rotation: tuple[Tensor, Tensor], seen_TT: Tensor
) -> Tensor:
    config = shard.config
    qkv = F.linear(x_TD, plain(layer.qkv), layer.qkv_bias).unflatten(1, (-1, config.head_dim))
    q, k, v = qkv.split([shard.heads, shard.kv_heads, shard.kv_heads], dim=1)
    if layer.query_norm_E is not None and layer.key_norm_E is not None:
        q, k = _norm(q, layer.query_norm_E, config), _norm(k, layer.key_norm_E, config)
    q, k = rotate(q, rotation), rotate(k, rotation)
    mixed = F.scaled_dot_product_attention(
        *(part.transpose(0, 1)[None] for part in (q, k, v)), attn_mask=seen_TT, enable_gqa=True
    )
    return F.linear(mixed[0].transpose(0, 1).flatten(1), plain(layer.out))


class Pages:
    """Texts that grow step by step, in blocks taken in random order; every token's logits are asked for."""

    def __init__(self, texts: list[Tensor], blocks: int, seed: int = 0) -> None:
        shuffled = np.random.default_rng(seed).permutation(blocks).astype(np.int32)
        self.texts, self.done = texts, [0] * len(texts)
        self.row = max(-(-len(text) // BLOCK_TOKENS) for text in texts)
        self.blocks_SM = shuffled[: len(texts) * self.row].reshape(len(texts), self.row)

    def step(self, counts: dict[int, int]) -> Step:
        """The next tokens of some texts: how many, by the text's index."""
        spans = [(text, self.done[text], self.done[text] + count) for text, count in counts.items()]
        tokens_N = np.concatenate([self.texts[text][begin:end].numpy() for text, begin, end in spans]).astype(np.int32)
        positions_N = np.concatenate([np.arange(begin, end, dtype=np.int32) for _, begin, end in spans])
        starts_S = np.cumsum([0, *counts.values()]).astype(np.int32)
        for text, _, end in spans:
            self.done[text] = end
        blocks_SM = self.blocks_SM[list(counts)]
        return Step(tokens_N, positions_N, starts_S, blocks_SM, np.arange(len(tokens_N), dtype=np.int32))


def change(**changes: object) -> ModelConfig:
    """SHAPE with some fields changed."""
    return dataclasses.replace(SHAPE, **changes)  # type: ignore[arg-type]
