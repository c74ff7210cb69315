"""How well a model predicts held-out text: exact nats and bits, each token once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from llmos.parallel.model import SpreadModel
from llmos.parallel.world import others_alive
from llmos.train.data import Corpus
from llmos.train.rows import Rows, batch


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``loss`` in nats per token, over ``tokens`` of them; ``bits_per_byte`` of the text the tokens stand for."""

    loss: float
    bits_per_byte: float
    tokens: int


def evaluate(
    model: SpreadModel, corpus: Corpus, rows: Rows, length: int, mask: bool, alive: Callable[[], None] = lambda: None
) -> Evaluation:
    """The cost of the held-out text of ``corpus``, cut into ``rows`` of ``length`` tokens, which are split over ranks.

    Every token of a text is counted once; the very first, which nothing precedes, at the cost of a uniform guess: the
    bits are those of a complete code for the text. Of chats the assistant's tokens are counted. With ``mask``, tokens
    see their own document only. All ranks run equally many micro-batches of one shape, filled up with what does not
    count: they may need each other. ``alive`` is called after each.
    """
    mesh, size = model.mesh, model.layout.rows
    mine, most = mesh.share(rows.count), -(-rows.count // mesh.readers)
    nats, counted = torch.zeros((), dtype=torch.float64, device=mesh.world.device), 0
    model.set_scale(1.0)
    for start in range(mine.start, mine.start + most, size):
        found = [rows.read(0, row) for row in range(start, min(start + size, mine.stop))]
        part = batch(found, length, mask).filled(max(1, len(found)) if mesh.only_dp else size).to(mesh.world.device)
        with others_alive():
            nats += model.passes.evaluate(part.tokens_BT, part.targets_BT, part.documents_BT).double()
        counted += int(part.counted)
        alive()
    total, tokens = mesh.world.total([float(nats), counted] if mesh.reports else [0.0, 0.0])
    if not corpus.chats:
        total, tokens = total + math.log(model.config.vocab_size), tokens + 1
    return Evaluation(total / tokens, total / math.log(2) / corpus.validation_bytes, int(tokens))
