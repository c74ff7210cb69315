"""What requests change in logits before tokens are chosen: penalties, biases, ends that come too early, grammar."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmos.infer.grammar import masks
from llmos.infer.row import Ints, Row


def apply(rows: Sequence[Row], logits_LV: Tensor) -> None:
    """Edit ``rows`` of ``logits_LV`` in place. A request's are one after another, those with fewer drafts first."""
    penalized = [row for row in rows if row.state.seen is not None]
    if penalized:
        _penalize(penalized, logits_LV)
    _add(rows, logits_LV)
    ruled = [row for row in rows if row.state.matcher is not None]
    if ruled:
        _forbid(ruled, logits_LV)


def _penalize(rows: Sequence[Row], logits_LV: Tensor) -> None:
    """Repetition: CTRL, arXiv 1909.05858, section 4.1. Frequency and presence: OpenAI's API reference."""
    tokens, repetitions, less = [], [], []
    for row in rows:
        params, seen = row.state.params, row.state.seen
        assert seen is not None
        tokens_n, counts_n = seen.after(row.drafts)
        tokens.append(tokens_n)
        repetitions.append(np.full(len(tokens_n), params.repetition_penalty, dtype=np.float32))
        less.append(
            np.float32(params.frequency_penalty) * counts_n + np.float32(params.presence_penalty) * (counts_n > 0)
        )
    at_N = _places(rows, tokens, logits_LV.device)
    repetition_N = torch.from_numpy(np.concatenate(repetitions)).to(logits_LV.device)
    less_N = torch.from_numpy(np.concatenate(less).astype(np.float32)).to(logits_LV.device)
    found_N = logits_LV[at_N]
    logits_LV[at_N] = torch.where(found_N > 0, found_N / repetition_N, found_N * repetition_N) - less_N


def _add(rows: Sequence[Row], logits_LV: Tensor) -> None:
    parts = [(row, *part) for row in rows for part in row.state.added(len(row.drafts)) if len(part[0])]
    if parts:
        at_N = _places([row for row, _, _ in parts], [tokens for _, tokens, _ in parts], logits_LV.device)
        more_N = torch.from_numpy(np.concatenate([more for _, _, more in parts])).to(logits_LV.device)
        logits_LV.index_put_(at_N, more_N, accumulate=True)


def _forbid(rows: Sequence[Row], logits_LV: Tensor) -> None:
    """Leave what the grammars allow."""
    last = {id(row.state): row for row in rows}  # of each request, the row with all its drafts
    walks = [(row.state.matcher, row.drafts) for row in last.values() if row.state.matcher is not None]
    forbidden_RV = torch.from_numpy(~masks(walks, logits_LV.shape[1])).to(logits_LV.device)
    for row, forbidden_V in zip(rows, forbidden_RV, strict=True):
        logits_LV[row.number].masked_fill_(forbidden_V, -math.inf)


def _places(rows: Sequence[Row], tokens: Sequence[Ints], device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of ``tokens``, some for each of ``rows``."""
    rows_N = np.repeat([row.number for row in rows], [len(some) for some in tokens])
    return torch.from_numpy(rows_N).to(device), torch.from_numpy(np.concatenate(tokens)).to(device)
