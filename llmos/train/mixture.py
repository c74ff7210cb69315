"""Which source each sample comes from: a pure function of the weights, the seed and the sample's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmos.spec.data import MIXTURE_BLOCK
from llmos.train.sampler import visits


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
        came before; both [stop - start]. A source's samples are taken without gap or repetition."""
        samples = np.arange(start, stop, dtype=np.int64)
        if len(self.shares) == 1:
            return np.zeros_like(samples), samples
        blocks, places = visits(samples, MIXTURE_BLOCK, self.seed)
        ends = np.cumsum(self.shares)
        sources = np.searchsorted(ends, places, side="right")
        shares = np.array(self.shares, dtype=np.int64)
        return sources, blocks * shares[sources] + places - (ends - shares)[sources]
