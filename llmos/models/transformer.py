"""A decoder-only transformer: Llama and the families that differ little from it. Parameter names are Hugging Face's.

It computes whole sequences, for training and as what the engine's runners are compared with.
Suffixes of tensors are their dimensions: B rows, T tokens, V vocabulary, D features (of a head inside attention),
H query heads, K key and value heads.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmos.models.block_attention import MAX_TOKENS, MIN_TOKENS, block_attention
from llmos.models.config import ModelConfig
from llmos.models.linear import Linear
from llmos.models.norm import RMSNorm, product_dtype
from llmos.models.rope import rotate, rotations

INIT_STD = 0.02

Rotation = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped keys and values (GQA, arXiv 2305.13245).

    By family, with biases on queries, keys and values, or with norms of the heads of queries and keys.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._head_dim = config.head_dim
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, q_size, config.attention_bias)
        self.k_proj = Linear(config.hidden_size, kv_size, config.attention_bias)
        self.v_proj = Linear(config.hidden_size, kv_size, config.attention_bias)
        self.o_proj = Linear(q_size, config.hidden_size)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x_BTD: Tensor, rotation: Rotation, first_BT: Tensor | None = None) -> Tensor:
        heads = (*x_BTD.shape[:2], -1, self._head_dim)
        q_BTHD, k_BTKD = self.q_proj(x_BTD).view(heads), self.k_proj(x_BTD).view(heads)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        q_BTHD, k_BTKD = rotate(q_BTHD, rotation), rotate(k_BTKD, rotation)
        v_BTKD = self.v_proj(x_BTD).view(heads)
        out_BHTD = _attend(q_BTHD.transpose(1, 2), k_BTKD.transpose(1, 2), v_BTKD.transpose(1, 2), first_BT)
        return cast(Tensor, self.o_proj(out_BHTD.transpose(1, 2).flatten(2)))


def _attend(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, first_BT: Tensor | None) -> Tensor:
    """Causal attention; each token sees those from ``first_BT`` on."""
    least = MIN_TOKENS if first_BT is None else 1  # a mask makes torch's kernel slow
    if q_BHTD.device.type == "cpu" and least <= q_BHTD.shape[2] <= MAX_TOKENS:
        return block_attention(q_BHTD, k_BKTD, v_BKTD, first_BT)
    if first_BT is not None:
        mask_B1TT = _mask_from(first_BT)
        return F.scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, attn_mask=mask_B1TT, enable_gqa=True)
    return F.scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, is_causal=True, enable_gqa=True)


def first_visible(config: ModelConfig, documents_BT: Tensor | None, tokens_BT: Tensor) -> Tensor | None:
    """The first token that each of ``tokens_BT`` sees, of its document or its window, [B or 1, T]; None: of its row."""
    window, length = config.sliding_window, tokens_BT.shape[1]
    if window is None or window >= length:
        return documents_BT
    first_1T = torch.arange(1 - window, length - window + 1, device=tokens_BT.device).clamp_(min=0)[None]
    return first_1T if documents_BT is None else torch.maximum(first_1T, documents_BT)


def _mask_from(first_BT: Tensor) -> Tensor:
    """Which keys each token sees: from its first one to itself, bool, shape [B, 1, T, T]."""
    at_T = torch.arange(first_BT.shape[1], device=first_BT.device)
    return ((at_T >= first_BT[..., None]) & (at_T <= at_T[:, None]))[:, None]


class MLP(nn.Module):
    """SwiGLU feed-forward: down(silu(gate(x)) · up(x)). Source: arXiv 2002.05202."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD)))


class Layer(nn.Module):
    """Attention and feed-forward, each added to a stream that is normalized before it is read.

    Under autocast the stream stays in float32: in bf16, whose 8 bits swallow small additions, the loss of a
    model of 5.5 M parameters was 0.12 nats higher after 220 steps of 2,048 tokens.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rotation: Rotation, first_BT: Tensor | None = None) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotation, first_BT)
        return cast(Tensor, x_BTD + self.mlp(self.post_attention_layernorm(x_BTD)))


def _embedding(rows: int, size: int) -> nn.Embedding:
    """Not drawn: on ``meta``, torch draws a normal distribution by its compiler, which takes a second to load."""
    return nn.Embedding(rows, size, _weight=torch.empty(rows, size))


class Decoder(nn.Module):
    """Embedding, layers and the last norm: everything but the output matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = _embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class Transformer(nn.Module):
    """The whole model. New weights are drawn from torch's random generator: same seed, same weights.

    Inside ``with torch.device("meta")`` it is only a shape, to be filled by :mod:`llmos.models.weights`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # or every part would draw weights of its own first
            self.model = Decoder(config)
            self.lm_head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, False)
        self.to_empty(device=device)
        if device.type != "meta":
            self.reset_parameters()

    @property
    def output_weight(self) -> Tensor:
        """The matrix [V, D] that turns hidden states into logits; with tied embeddings, the embedding's own."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: normal with std 0.02, and those that write to the residual stream smaller.

        Their number grows with depth, so each is scaled by 1 / √(2 · layers), which keeps the stream's variance at the
        same order (GPT-2: Radford et al. 2019, section 2.3). Norms start at 1, biases at 0.
        """
        smaller = INIT_STD / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
            else:
                std = smaller if name.endswith(("o_proj.weight", "down_proj.weight")) else INIT_STD
                parameter.normal_(std=std, generator=generator)

    def hidden(
        self,
        tokens_BT: Tensor,
        positions: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """What the output matrix reads, [B, T, D]: :meth:`forward` without the logits.

        ``documents_BT`` packs several documents into a row: it says at which token of the row each token's document
        begins. Every document is then computed as if it were alone; its positions count from 0.
        """
        if positions is None:
            positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
            positions = positions if documents_BT is None else positions - documents_BT
        x_BTD = self.model.embed_tokens(tokens_BT)
        cos, sin = rotations(self.config, positions)
        rotation = cos.to(product_dtype(x_BTD)), sin.to(product_dtype(x_BTD))
        first_BT = first_visible(self.config, documents_BT, tokens_BT)
        for layer in self.model.layers:
            x_BTD = layer(x_BTD, rotation, first_BT)
        return cast(Tensor, self.model.norm(x_BTD))

    def forward(self, tokens_BT: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits of the token after each of ``tokens_BT``, shape [B, T, V], in the type of the weights.

        ``positions`` ([T] or [B, T]) says where the tokens stand, if not at 0, 1, …
        """
        return F.linear(self.hidden(tokens_BT, positions), self.output_weight)
