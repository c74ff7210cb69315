"""A batch as the arrays of a step."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from llmos.infer.entry import Batch, Part
from llmos.infer.step import Step


def step_of(batch: Batch) -> Step:
    """The arrays for ``batch``, which has parts. Its logits come in the order of the parts, ``part.logits`` of each."""
    tokens: list[int] = []
    logits_at: list[int] = []
    for part in batch.parts:
        entry, end = part.entry, part.entry.computed + part.count
        tokens += entry.tokens[entry.computed : end]
        tokens += entry.drafts[: max(0, end - len(entry.tokens))]
        logits_at += range(len(tokens) - part.logits, len(tokens))
    counts_S = np.array([part.count for part in batch.parts], np.int32)
    starts_S = np.zeros(len(counts_S) + 1, np.int32)
    np.cumsum(counts_S, out=starts_S[1:])
    shifts_S = np.array([part.entry.computed for part in batch.parts], np.int32) - starts_S[:-1]
    return Step(
        tokens_N=np.array(tokens, np.int32),
        positions_N=np.arange(len(tokens), dtype=np.int32) + np.repeat(shifts_S, counts_S),
        starts_S=starts_S,
        blocks_SM=_blocks(batch),
        logits_at_L=np.array(logits_at, np.int32),
    )


def wanted(batch: Batch, ids: Container[str]) -> tuple[list[Part], list[int]]:
    """The parts of entries in ``ids`` whose logits are wanted, and the rows of the step's logits that are theirs."""
    parts: list[Part] = []
    rows: list[int] = []
    row = 0
    for part in batch.parts:
        if part.logits and part.entry.id in ids:
            parts.append(part)
            rows += range(row, row + part.logits)
        row += part.logits
    return parts, rows


def _blocks(batch: Batch) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """The blocks of every sequence [S, M], filled up with 0."""
    tables = [part.entry.table.blocks for part in batch.parts if part.entry.table is not None]
    lengths_S = np.array([len(blocks) for blocks in tables])
    blocks_SM = np.zeros((len(tables), lengths_S.max()), np.int32)
    blocks_SM[np.arange(lengths_S.max()) < lengths_S[:, None]] = np.frombuffer(b"".join(tables), np.int32)
    return blocks_SM
