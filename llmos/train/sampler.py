"""Which window of the corpus is trained on when: a pure function of the seed and the step.

There is no state to save, and the number of ranks does not enter: whatever ranks an attempt has, step by step they read
the same windows together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmos.errors import DataError

_ROUNDS = 4
"""Luby and Rackoff (1988): four rounds of good mixing make a Feistel network look like a random permutation."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """Windows of ``length`` + 1 tokens (inputs, and the same moved by one) of a corpus of ``tokens`` tokens.

    An epoch visits each window once, in an order of its own, and begins at an offset of its own, so that over the
    epochs windows do not always break at the same places. Raises DataError when not even one window fits.
    """

    tokens: int
    length: int
    seed: int

    def __post_init__(self) -> None:
        if self.tokens <= self.length:
            raise DataError(
                f"the training text has {self.tokens} tokens: expected more than `sequence_length: {self.length}`",
                hint="Give more text, or a shorter sequence_length.",
            )

    @property
    def windows(self) -> int:
        """Windows of an epoch: all that fit whatever the epoch's offset, and at least one."""
        return max(1, (self.tokens - self.length) // self.length)

    def offsets(self, start: int, stop: int) -> NDArray[np.int64]:
        """Where the samples ``start`` to ``stop`` - 1 begin, counted over the whole job; shape [stop - start]."""
        epochs, windows = visits(np.arange(start, stop, dtype=np.int64), self.windows, self.seed)
        phases = np.array([self.phase(int(epoch)) for epoch in epochs], dtype=np.int64)
        return phases + windows * self.length

    def phase(self, epoch: int) -> int:
        """Tokens that ``epoch`` skips at the beginning of the corpus, fewer than ``length``."""
        slack = min(self.length - 1, self.tokens - 1 - self.windows * self.length)
        return int(np.random.default_rng((self.seed, epoch, 1)).integers(slack + 1))


def visits(ordinals: NDArray[np.int64], count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The epoch of each of ``ordinals`` (0, 1, … over the whole job), and which of ``count`` windows it visits then.

    An epoch visits each window once, in an order of its own.
    """
    epochs, positions = np.divmod(ordinals, count)
    windows = np.empty_like(positions)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        windows[rows] = permute(positions[rows], count, np.random.SeedSequence((seed, int(epoch))))
    return epochs, windows


def permute(positions: NDArray[np.int64], count: int, seed: np.random.SeedSequence) -> NDArray[np.int64]:
    """``positions`` (each in [0, ``count``)) under the permutation of [0, ``count``) that ``seed`` picks.

    A Feistel network on the next even number of bits, applied again to results outside the range ("cycle walking",
    Black and Rogaway 2002): constant memory however large the corpus, and any position at once.
    """
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
    keys = seed.generate_state(_ROUNDS, np.uint64).astype(np.uint64)
    values = _feistel(positions.astype(np.uint64), half, keys)
    while (outside := values >= count).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
