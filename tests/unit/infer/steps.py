"""Ragged batches over shuffled pages, as a scheduler makes them, and what the model says of each without a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llmos.infer.step import BLOCK_TOKENS, Runner, Step
from llmos.models import Transformer

BLOCKS = 64


@dataclass
class Script:
    """Sequences of random tokens, and how many of each every step computes (0: it waits)."""

    counts: Sequence[Sequence[int]] = (
        (5, 40, 0, 0),  # prompts
        (1, 30, 17, 3),  # one goes on, one is read in parts, two come
        (1, 1, 20, 1),
        (3, 1, 1, 1),  # drafts, say
        (1, 1, 1, 1),
        (1, 1, 1, 1),
    )
    vocab_size: int = 97
    seed: int = 0
    tokens: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        totals = np.sum(self.counts, axis=0)
        self.tokens = [random.integers(0, self.vocab_size, total).tolist() for total in totals]
        self._blocks = random.permutation(BLOCKS).astype(np.int32).reshape(len(totals), -1)

    def steps(self) -> Iterator[tuple[Step, list[tuple[int, int]]]]:
        """Each step, and (sequence, length) of what its logits are after."""
        done = [0] * len(self.tokens)
        for counts in self.counts:
            these = [s for s, count in enumerate(counts) if count]
            ends = [(s, length) for s in these for length in range(done[s] + 1, done[s] + counts[s] + 1)]
            at = np.cumsum([0, *(counts[s] for s in these)], dtype=np.int32)
            wanted = [n for n, (s, length) in enumerate(ends) if counts[s] <= 3 or length == done[s] + counts[s]]
            longest = max(-(-(done[s] + counts[s]) // BLOCK_TOKENS) for s in these)
            blocks_SM = np.zeros((len(these), longest), np.int32)
            for row, s in enumerate(these):
                used = -(-(done[s] + counts[s]) // BLOCK_TOKENS)
                blocks_SM[row, :used] = self._blocks[s, :used]
            yield (
                Step(
                    np.array([self.tokens[s][length - 1] for s, length in ends], np.int32),
                    np.array([length - 1 for _, length in ends], np.int32),
                    at,
                    blocks_SM,
                    np.array(wanted, np.int32),
                ),
                [ends[n] for n in wanted],
            )
            done = [before + count for before, count in zip(done, counts, strict=True)]


@torch.no_grad()
def expected(model: Transformer, script: Script) -> list[Tensor]:
    """The logits [L, V] of every step, each sequence computed whole and alone."""
    whole = [model(torch.tensor([tokens]))[0] for tokens in script.tokens]
    return [torch.stack([whole[s][length - 1] for s, length in ends]) for _, ends in script.steps()]


def computed(runner: Runner, script: Script) -> list[Tensor]:
    """What ``runner`` says, with as many steps in flight as it takes where sequences allow it."""
    logits = []
    for step, _ in script.steps():
        runner.start(step)
        logits.append(runner.finish().cpu())
    return logits


def worst(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference."""
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))
