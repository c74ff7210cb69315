"""How long a step may take before it is said to hang."""

from __future__ import annotations

import math

from llmos.infer.step import BLOCK_TOKENS

TIMES = 4.0
"""A step hangs that takes so many times as long, for its tokens, as the slowest before."""


class Patience:
    """Nothing hangs before ``least_s``; before the first step is known, nothing before ``first_s``.

    Steps of one block of tokens and fewer count as one block: they read the weights, and take about as long.
    """

    def __init__(self, least_s: float, first_s: float = math.inf) -> None:
        self._least_s, self._first_s = least_s, first_s
        self._block_s = 0.0

    def learn(self, tokens: int, took_s: float) -> None:
        """A step of ``tokens`` tokens took ``took_s`` seconds."""
        self._block_s = max(self._block_s, took_s / _blocks(tokens))

    def limit_s(self, tokens: int) -> float:
        """How long a step of ``tokens`` tokens may take."""
        if not self._block_s:
            return self._first_s
        return max(self._least_s, TIMES * self._block_s * _blocks(tokens))


def _blocks(tokens: int) -> int:
    return max(1, -(-tokens // BLOCK_TOKENS))
