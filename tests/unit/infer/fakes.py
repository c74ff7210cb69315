"""A runner without a model: what it answers depends on every token it finds in the pages, and on nothing else."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from llmos.infer.step import BLOCK_TOKENS, Step

VOCAB = 101


def following(tokens: Sequence[int]) -> int:
    """The token after ``tokens``."""
    weights = np.arange(1, len(tokens) + 1)
    return int((np.asarray(tokens) * weights).sum() % VOCAB)


def answer(prompt: Sequence[int], count: int) -> list[int]:
    """``count`` tokens after ``prompt``."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(following(tokens))
    return tokens[len(prompt) :]


class PageRunner:
    """Writes tokens where keys and values would be, and ``follow`` gets what is read back.

    ``broken`` is raised; after the token ``nan_after``, logits are no numbers.
    """

    def __init__(self, blocks: int = 64, depth: int = 1, follow: Callable[[Sequence[int]], int] = following) -> None:
        self.follow = follow
        self.vocab_size, self.blocks, self.depth = VOCAB, blocks, depth
        self.pages = np.full((blocks, BLOCK_TOKENS), -1)
        self.started: deque[Step] = deque()
        self.most_started = self.steps = 0
        self.broken: Exception | None = None
        self.nan_after: int | None = None
        self.closed = False

    def start(self, step: Step) -> None:
        assert len(self.started) < self.depth
        self.started.append(step)
        self.most_started = max(self.most_started, len(self.started))

    def finish(self) -> Tensor:
        if self.broken is not None:
            raise self.broken
        step, self.steps = self.started.popleft(), self.steps + 1
        logits_NV = torch.zeros(len(step.tokens_N), VOCAB)
        for s in range(len(step.starts_S) - 1):
            for n in range(step.starts_S[s], step.starts_S[s + 1]):
                at = int(step.positions_N[n])
                self.pages[step.blocks_SM[s, at // BLOCK_TOKENS], at % BLOCK_TOKENS] = step.tokens_N[n]
                seen = self.pages[step.blocks_SM[s, : at // BLOCK_TOKENS + 1]].ravel()[: at + 1]
                logits_NV[n, self.follow(seen)] = 9.0
                if step.tokens_N[n] == self.nan_after:
                    logits_NV[n, 3] = math.nan
        return logits_NV[torch.from_numpy(step.logits_at_L).long()]

    def stats(self) -> dict[str, object]:
        return {"runner": "pages"}

    def close(self) -> None:
        self.closed = True
