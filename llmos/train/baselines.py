"""What a model has to beat: how many bits per byte of held-out text simple predictors need."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

_GZIP_WINDOW_BITS = 31
"""zlib's largest window, 32 KiB, in the gzip format."""


def gzip_bits(documents: Sequence[bytes]) -> float:
    """Bits per byte of ``gzip -9``: all ``documents`` in one file or each in its own, whichever is smaller.

    Raises ValueError when there is no text.
    """
    size = sum(map(len, documents))
    if size == 0:
        raise ValueError("there is no text to compress")
    return 8 * min(_gzip_size(documents), sum(_gzip_size([document]) for document in documents)) / size


def unigram_bits(train: bytes, validation: bytes) -> float:
    """Bits per byte of ``validation`` when each byte costs what its frequency in ``train``, plus one, says (Laplace).

    Raises ValueError when ``validation`` is empty.
    """
    if not validation:
        raise ValueError("there is no text to predict")
    seen = _counts(train) + 1
    return float(_counts(validation) @ np.log2(seen.sum() / seen)) / len(validation)


def _gzip_size(parts: Sequence[bytes]) -> int:
    compressor = zlib.compressobj(9, zlib.DEFLATED, _GZIP_WINDOW_BITS)
    return sum(len(compressor.compress(part)) for part in parts) + len(compressor.flush())


def _counts(text: bytes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How often each byte value occurs, [256]."""
    return np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=256).astype(np.int64)
