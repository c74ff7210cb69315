"""Attention over pages on cards, in bf16: sequences of any lengths in one call of torch's FlashAttention."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from llmos.infer.paged_attention import Pages, Plan
from llmos.infer.step import BLOCK_TOKENS, Step

_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""torch 2.11 shares key heads without being told."""


@dataclass(frozen=True, slots=True)
class RaggedPlan(Plan):
    """``seen_T`` are the slots of what all sequences see, one after another; ends of queries and keys, [S + 1]."""

    seen_T: Tensor
    query_ends_S: Tensor
    key_ends_S: Tensor
    most_queries: int
    most_keys: int
    window: int | None


class VarlenPages(Pages):
    """Keys and values are gathered without padding. (torch's kernel reads pages where they lie from 256 tokens on.)"""

    def begin(self, step: Step, window: int | None) -> Plan:
        """See :class:`Pages`."""
        counts_S = np.diff(step.starts_S)
        lengths_S = step.positions_N[step.starts_S[1:] - 1] + 1
        ends_S = np.concatenate(([0], np.cumsum(lengths_S))).astype(np.int32)
        sequence_T = np.repeat(np.arange(len(counts_S)), lengths_S)
        at_T = np.arange(ends_S[-1]) - ends_S[sequence_T]
        seen_T = step.blocks_SM[sequence_T, at_T // BLOCK_TOKENS].astype(np.int64) * BLOCK_TOKENS + at_T % BLOCK_TOKENS
        return RaggedPlan(
            slots_N=self._slots(step),
            groups=(),
            seen_T=self._tensor(seen_T),
            query_ends_S=self._tensor(step.starts_S),
            key_ends_S=self._tensor(ends_S),
            most_queries=int(counts_S.max()),
            most_keys=int(lengths_S.max()),
            window=window,
        )

    def attend(self, layer: int, plan: Plan, q_NHE: Tensor, kv_NKE: Tensor) -> Tensor:
        """See :class:`Pages`."""
        if not isinstance(plan, RaggedPlan):
            return super().attend(layer, plan, q_NHE, kv_NKE)
        seen_TKE = self._by_slot[layer].index_select(1, plan.seen_T).transpose(0, 1)
        out_NHE = varlen_attn(
            q_NHE,
            seen_TKE[:, : self._kv_heads],
            seen_TKE[:, self._kv_heads :],
            plan.query_ends_S,
            plan.key_ends_S,
            plan.most_queries,
            plan.most_keys,
            window_size=(-1 if plan.window is None else plan.window - 1, 0),
            **_GROUPED,
        )
        assert isinstance(out_NHE, torch.Tensor)
        return out_NHE.flatten(1)
