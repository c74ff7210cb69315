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
    """Sequences of random tokens, and how many of each every step computes (0: it waits).

    Nobody's logits are wanted in the ``silent`` steps. The blocks are BLOCKS ones from ``first_block`` on.
    """

    counts: Sequence[Sequence[int]] = (
        (0, 24, 0, 0),  # the middle of a prompt
        (5, 16, 0, 0),  # prompts
        (1, 30, 17, 3),  # one goes on, one is read in parts, two come
        (1, 1, 20, 1),
        (3, 1, 1, 1),  # drafts, say
        (1, 1, 1, 1),
        (1, 1, 1, 1),
    )
    silent: Sequence[int] = (0,)
    vocab_size: int = 97
    seed: int = 0
    first_block: int = 0
    tokens: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        totals = np.sum(self.counts, axis=0)
        self.tokens = [random.integers(0, self.vocab_size, total).tolist() for total in totals]
        self._blocks = self.first_block + random.permutation(BLOCKS).astype(np.int32).reshape(len(totals), -1)

    def steps(self) -> Iterator[tuple[Step, list[tuple[int, int]]]]:
        """Each step, and (sequence, length) of what its logits are after."""
        done = [0] * len(self.tokens)
        for number, counts in enumerate(self.counts):
            these = [s for s, count in enumerate(counts) if count]
            ends = [(s, length) for s in these for length in range(done[s] + 1, done[s] + counts[s] + 1)]
            at = np.cumsum([0, *(counts[s] for s in these)], dtype=np.int32)
            wanted = [n for n, (s, length) in enumerate(ends) if counts[s] <= 3 or length == done[s] + counts[s]]
            wanted = [] if number in self.silent else wanted
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
    nothing_0V = whole[0][:0]
    return [torch.stack([whole[s][n - 1] for s, n in ends]) if ends else nothing_0V for _, ends in script.steps()]


def computed(runner: Runner, script: Script) -> list[Tensor]:
    """What ``runner`` says to one step after another."""
    logits = []
    for step, _ in script.steps():
        runner.start(step)
        logits.append(runner.finish().cpu())
    return logits


def worst(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference."""
    pairs = list(zip(ours, theirs, strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max((a - b).abs().max().item() for a, b in pairs if a.numel())
