"""How well a model predicts held-out text: exact nats and bits, each token once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from llmos.models import Transformer
from llmos.parallel.world import World
from llmos.train.data import Corpus
from llmos.train.rows import Rows, batch
from llmos.train.step import loss_sum, micro_batches

_BATCH_ROWS = 64
"""Rows read from disk at a time."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``loss`` in nats per token; ``bits_per_byte`` of the text the tokens stand for."""

    loss: float
    bits_per_byte: float


def evaluate(
    model: Transformer, corpus: Corpus, rows: Rows, length: int, mask: bool, dtype: torch.dtype, world: World
) -> Evaluation:
    """The cost of the held-out text of ``corpus``, cut into ``rows`` of ``length`` tokens, which are split over ranks.

    Every token of a text is counted once; the very first, which nothing precedes, at the cost of a uniform guess: the
    bits are those of a complete code for the text. Of chats the assistant's tokens are counted. With ``mask``, tokens
    see their own document only.
    """
    mine = world.share(rows.count)
    nats, counted = torch.zeros((), dtype=torch.float64, device=world.device), 0
    with torch.no_grad():
        for start in range(mine.start, mine.stop, _BATCH_ROWS):
            found = (rows.read(0, row) for row in range(start, min(start + _BATCH_ROWS, mine.stop)))
            for part in micro_batches(batch(found, length, mask).to(world.device), None):
                nats += loss_sum(model, part, dtype).double()
                counted += int(part.counted)
    total, tokens = world.total([float(nats), counted])
    if not corpus.chats:
        total, tokens = total + math.log(model.config.vocab_size), tokens + 1
    return Evaluation(total / tokens, total / math.log(2) / corpus.validation_bytes)
