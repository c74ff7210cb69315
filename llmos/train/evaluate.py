"""How well a model predicts held-out text: exact nats and bits, each token once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmos.models import Transformer
from llmos.parallel.world import World
from llmos.train.step import loss_sum, micro_batches

NOT_COUNTED = -1
_BATCH_WINDOWS = 64
"""Windows read from disk at a time."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``loss`` in nats per token; ``bits_per_byte`` of the text the tokens stand for."""

    loss: float
    bits_per_byte: float


def evaluate(
    model: Transformer, tokens: NDArray[np.integer], byte_count: int, length: int, dtype: torch.dtype, world: World
) -> Evaluation:
    """The cost of ``tokens``, the encoding of ``byte_count`` bytes, with at most ``length`` tokens of context.

    The text is cut into windows without overlap, split over the ranks. Every token is counted once; the very first,
    which nothing precedes, at the cost of a uniform guess: the bits are those of a complete code for the text.
    """
    mine = world.share(-(-(len(tokens) - 1) // length))
    nats = torch.zeros((), dtype=torch.float64, device=world.device)
    with torch.no_grad():
        for start in range(mine.start, mine.stop, _BATCH_WINDOWS):
            rows = _rows(tokens, range(start, min(start + _BATCH_WINDOWS, mine.stop)), length)
            for part in micro_batches(rows.to(world.device), None):
                nats += loss_sum(model, part, dtype).double()
    total = world.total([float(nats)])[0] + math.log(model.config.vocab_size)
    return Evaluation(total / len(tokens), total / math.log(2) / byte_count)


def _rows(tokens: NDArray[np.integer], windows: range, length: int) -> Tensor:
    """``windows`` as rows of ``length`` + 1 tokens, int64; the last of the text is filled up with NOT_COUNTED."""
    rows = np.full((len(windows), length + 1), NOT_COUNTED, dtype=np.int64)
    for row, window in zip(rows, windows, strict=True):
        found = tokens[window * length : (window + 1) * length + 1]
        row[: len(found)] = found
    return torch.from_numpy(rows)
