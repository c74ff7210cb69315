"""What a model has to beat: how many bits per byte of held-out text simple predictors need."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_GZIP_WINDOW_BITS = 31
"""zlib's largest window, 32 KiB, in the gzip format."""


def gzip_bytes(parts: Iterable[bytes]) -> int:
    """The size of one file of ``gzip -9`` with all of ``parts``."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, _GZIP_WINDOW_BITS)
    return sum(len(compressor.compress(part)) for part in parts) + len(compressor.flush())


def byte_counts(text: bytes) -> NDArray[np.int64]:
    """How often each byte value occurs, [256]."""
    return np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=256).astype(np.int64)


def unigram_bits(train: NDArray[np.int64], validation: NDArray[np.int64]) -> float:
    """Bits per byte of a text when each byte costs what its frequency in another, plus one, says (Laplace).

    Both are given as :func:`byte_counts`. Raises ValueError when the validation text is empty.
    """
    if not validation.any():
        raise ValueError("there is no text to predict")
    seen = train + 1
    return float(validation @ np.log2(seen.sum() / seen)) / int(validation.sum())
