"""Rows of one key-value cache that decode together; they join and leave between steps.

Batching at the granularity of single steps: Orca (Yu et al., OSDI 2022), section 3. Long prompts are read in parts
between the steps of the other rows, so that nobody waits long for a newcomer: Sarathi (arXiv 2308.16369).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Many

import torch
from torch import Tensor

from llmos.errors import EngineError, LlmosError
from llmos.infer.request import TokenEvent
from llmos.infer.sampler import Floats
from llmos.infer.sequence import Sequence
from llmos.models import KVCache, Transformer

PREFILL_TOKENS = 512
"""Prompt tokens read between two steps: 31 ms for 5.5 M parameters in bf16 on one core of an AMD EPYC (AVX512-BF16)."""

Outcome = tuple[Sequence, TokenEvent | LlmosError]

_log = logging.getLogger(__name__)


class Batch:
    """Up to ``max_rows`` sequences of at most ``max_length`` tokens. Row i of the cache belongs to ``sequences[i]``."""

    def __init__(self, model: Transformer, max_rows: int, max_length: int) -> None:
        weight = model.output_weight
        self._model, self._device = model, weight.device
        self._cache = KVCache(model.config, max_rows, max_length, weight.dtype, weight.device)
        self._max_rows = max_rows
        self.sequences: list[Sequence] = []

    @property
    def full(self) -> bool:
        return len(self.sequences) == self._max_rows

    def add(self, sequence: Sequence) -> None:
        """Give ``sequence`` a row. Raises CapacityError when there is none."""
        self._cache.add()
        self.sequences.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Free the row of ``sequence``; the last one takes its place."""
        row = self.sequences.index(sequence)
        self._cache.remove(row)
        last = self.sequences.pop()
        if last is not sequence:
            self.sequences[row] = last

    def step(self) -> list[Outcome]:
        """Read some of the new prompts, then give every row one token. Rows that are over have left.

        An error that concerns one row is its outcome. Raises what the model raises for all of them.
        """
        return self._read_prompts() + self._decode()

    def _read_prompts(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        budget = PREFILL_TOKENS
        for sequence in [s for s in self.sequences if s.count == 0]:
            if budget <= 0:
                break
            part, sequence.unread = sequence.unread[:budget], sequence.unread[budget:]
            budget -= len(part)
            try:
                logits_1V = self._read(self.sequences.index(sequence), part)
            except Exception as error:
                outcomes.append(self._failed(sequence, error))
                continue
            if not sequence.unread:
                outcomes.append(self._take(sequence, logits_1V[0]))
        return outcomes

    def _read(self, row: int, tokens: Many[int]) -> Floats:
        """Logits [1, V] after ``tokens``, which continue ``row``. Alone, so that others cannot change its rounding."""
        step = self._cache.step([len(tokens)], first=row)
        last_1 = torch.tensor([len(tokens) - 1], device=self._device)
        return _numbers(self._model(torch.tensor([tokens], device=self._device), cache=step, logits_at=last_1))

    def _decode(self) -> list[Outcome]:
        """One token for every row that has read its prompt; the others are padding this time."""
        ready = [sequence.count > 0 for sequence in self.sequences]
        if not any(ready):
            return []
        tokens = [[s.unread[0] if go else 0] for s, go in zip(self.sequences, ready, strict=True)]
        step = self._cache.step([int(go) for go in ready])
        logits_BV = _numbers(self._model(torch.tensor(tokens, device=self._device), cache=step)[:, 0])
        rows = zip(list(self.sequences), logits_BV, ready, strict=True)
        return [self._take(sequence, logits_V) for sequence, logits_V, go in rows if go]

    def _take(self, sequence: Sequence, logits_V: Floats) -> Outcome:
        try:
            event = sequence.take(logits_V)
        except Exception as error:
            return self._failed(sequence, error)
        if event.finish_reason:
            self.remove(sequence)
        return sequence, event

    def _failed(self, sequence: Sequence, error: Exception) -> Outcome:
        _log.exception("request %s failed", sequence.request.id)
        self.remove(sequence)
        if isinstance(error, LlmosError):
            return sequence, error
        return sequence, EngineError(f"the request failed: {type(error).__name__}: {error}", hint="See the log.")


def _numbers(logits_BV: Tensor) -> Floats:
    return logits_BV.float().cpu().numpy()
