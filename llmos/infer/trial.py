"""A step to try a runner with, before it has a request."""

from __future__ import annotations

import numpy as np

from llmos.infer.step import BLOCK_TOKENS, Step


def trial(size: int) -> Step:
    """``size`` tokens of one sequence, at most a block: block 0, which nobody uses yet. The last one's logits."""
    assert 1 <= size <= BLOCK_TOKENS
    positions_N = np.arange(size, dtype=np.int32)
    last_1 = np.array([size - 1], np.int32)
    return Step(positions_N * 0, positions_N, np.array([0, size], np.int32), np.zeros((1, 1), np.int32), last_1)
