"""How well a model predicts held-out text: exact nats and bits, each token once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmos.parallel.model import SpreadModel
from llmos.parallel.world import others_alive
from llmos.train.step import inputs_and_targets

NOT_COUNTED = -1


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``loss`` in nats per token; ``bits_per_byte`` of the text the tokens stand for."""

    loss: float
    bits_per_byte: float


def evaluate(model: SpreadModel, tokens: NDArray[np.integer], byte_count: int, length: int) -> Evaluation:
    """The cost of ``tokens``, the encoding of ``byte_count`` bytes, with at most ``length`` tokens of context.

    The text is cut into windows without overlap, split over the ranks. Every token is counted once; the very first,
    which nothing precedes, at the cost of a uniform guess: the bits are those of a complete code for the text. All
    ranks run equally many micro-batches of one shape, filled up with what does not count: they may need each other.
    """
    mesh, rows = model.mesh, model.layout.rows
    windows = -(-(len(tokens) - 1) // length)
    mine, most = mesh.share(windows), -(-windows // mesh.readers)
    nats = torch.zeros((), dtype=torch.float64, device=mesh.world.device)
    model.set_scale(1.0)
    for start in range(mine.start, mine.start + most, rows):
        part = range(start, max(start, min(start + rows, mine.stop)))
        samples = _rows(tokens, part, length, max(1, len(part)) if mesh.only_dp else rows)
        with others_alive():
            nats += model.passes.evaluate(*inputs_and_targets(samples.to(mesh.world.device))).double()
    total = mesh.world.total([float(nats) if mesh.reports else 0.0])[0] + math.log(model.config.vocab_size)
    return Evaluation(total / len(tokens), total / math.log(2) / byte_count)


def _rows(tokens: NDArray[np.integer], windows: range, length: int, count: int) -> Tensor:
    """``windows`` as rows of ``length`` + 1 tokens, int64, [count, length + 1]; NOT_COUNTED fills up the rest."""
    rows = np.full((count, length + 1), NOT_COUNTED, dtype=np.int64)
    for row, window in zip(rows, windows, strict=False):
        found = tokens[window * length : (window + 1) * length + 1]
        row[: len(found)] = found
    return torch.from_numpy(rows)
