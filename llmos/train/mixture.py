"""Which source each sample comes from: a pure function of the weights, the seed and the sample's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmos.spec.data import MIXTURE_BLOCK


@dataclass(frozen=True, slots=True)
class Mixture:
    """Samples come in blocks of MIXTURE_BLOCK; in each, source i has ``shares[i]``, in an order of the block's own."""

    shares: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, weights: Sequence[float], seed: int) -> Mixture:
        """Shares as near to ``weights`` as whole samples can be (largest remainder); each has at least one."""
        exact = np.array(weights, dtype=np.float64) * MIXTURE_BLOCK / sum(weights)
        shares = np.maximum(1, np.floor(exact)).astype(np.int64)
        while shares.sum() != MIXTURE_BLOCK:
            missing = exact - shares
            more = shares.sum() < MIXTURE_BLOCK
            shares[int(missing.argmax() if more else np.where(shares > 1, missing, np.inf).argmin())] += (
                1 if more else -1
            )
        return cls(tuple(int(share) for share in shares), seed)

    def at(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the samples ``start`` to ``stop`` - 1, counted over the whole job: the source, and how many of that source
        came before; both [stop - start]. A source's samples are taken one after the other."""
        samples = np.arange(start, stop, dtype=np.int64)
        if len(self.shares) == 1:
            return np.zeros_like(samples), samples
        blocks, places = np.divmod(samples, MIXTURE_BLOCK)
        sources, ordinals = np.empty_like(samples), np.empty_like(samples)
        for block in np.unique(blocks):
            of = blocks == block
            source, before = _block(self.shares, self.seed, int(block))
            sources[of] = source[places[of]]
            ordinals[of] = block * np.array(self.shares, dtype=np.int64)[sources[of]] + before[places[of]]
        return sources, ordinals


@lru_cache(maxsize=8)
def _block(shares: tuple[int, ...], seed: int, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The source of each sample of a block, and how many of that source come before it there; [MIXTURE_BLOCK] each."""
    sources = np.repeat(np.arange(len(shares)), shares)
    np.random.default_rng((seed, block, 2)).shuffle(sources)  # 2: no stream of the Sampler's
    before = np.empty_like(sources)
    for source, share in enumerate(shares):
        before[sources == source] = np.arange(share)
    return sources, before
