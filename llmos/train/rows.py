"""Rows of tokens: how a text is cut into them, and how chats are packed into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llmos.errors import DataError
from llmos.train.batch import NOT_COUNTED, Batch
from llmos.train.data import Corpus
from llmos.train.encode import read_chats
from llmos.train.sampler import Sampler
from llmos.train.tokens import Tokens

Row = tuple[NDArray[np.int64], NDArray[np.int64]]
"""``length`` + 1 tokens, and the places (of the first ``length``) where documents begin, beside 0."""


class Rows(Protocol):
    """``count`` rows; in each epoch the same, or cut elsewhere."""

    count: int

    def read(self, epoch: int, window: int) -> Row:
        """Row ``window`` as it is in ``epoch``. Raises DataError."""


class TextRows:
    """Windows of a text, by ``sampler``. An end-of-text token begins the document after it: it is what a model that
    writes a text of its own is given first."""

    def __init__(self, tokens: Tokens, eos_id: int, sampler: Sampler) -> None:
        self._tokens, self._eos_id, self._sampler = tokens, eos_id, sampler
        self.count = sampler.windows

    def read(self, epoch: int, window: int) -> Row:
        start = self._sampler.phase(epoch) + window * self._sampler.length
        row = self._tokens[start : start + self._sampler.length + 1]
        return row, np.flatnonzero(row[:-1] == self._eos_id)


class HeldOutText:
    """All of a text in windows without overlap; the last is filled up."""

    def __init__(self, tokens: Tokens, eos_id: int, length: int) -> None:
        self._tokens, self._eos_id, self._length = tokens, eos_id, length
        self.count = -(-(len(tokens) - 1) // length)

    def read(self, epoch: int, window: int) -> Row:
        start = window * self._length
        row = _filled(self._tokens[start : start + self._length + 1], self._length)
        return row, np.flatnonzero(row[:-1] == self._eos_id)


class ChatRows:
    """Whole chats, as many as fit one after the other; a chat that is longer than a row has one, and loses its end."""

    def __init__(self, tokens: Tokens, chats_N2: NDArray[np.int64], length: int, report: Callable[[str], None]) -> None:
        """``chats_N2``: see :func:`llmos.train.encode.read_chats`. ``report`` is told what does not fit."""
        self._tokens, self._length, self._begins = tokens, length, chats_N2[:, 0]
        ends = np.append(self._begins[1:], len(tokens))
        lost = chats_N2[:, 1] > length
        self._rows = pack(self._begins, ends, lost, length + 1)
        self.count = len(self._rows)
        if cut := int(((ends - self._begins > length + 1) & ~lost).sum()):
            report(
                f"{cut:,} of {len(ends):,} chats are longer than `sequence_length: {length}`: their ends are cut off"
            )
        if lost.any():
            report(
                f"left out {int(lost.sum()):,} of {len(ends):,} chats: the first answer begins after {length} tokens"
            )
        if not self.count:
            what = f"no chat has an answer within `sequence_length: {length}` tokens"
            raise DataError(what, hint="Raise sequence_length, or give more chats.", param="sequence_length")

    def read(self, epoch: int, window: int) -> Row:
        start, stop = self._rows[window]
        first, last = np.searchsorted(self._begins, (start, min(stop, start + self._length)))
        return _filled(self._tokens[int(start) : int(stop)], self._length), self._begins[first:last] - start


def pack(
    begins: NDArray[np.int64], ends: NDArray[np.int64], left_out: NDArray[np.bool_], width: int
) -> NDArray[np.int64]:
    """Rows of at most ``width`` tokens as (first, last + 1), [rows, 2]: each holds as many documents as fit, in order
    (next fit), none that is ``left_out``; a longer document has a row of its own and is cut off."""
    stops = np.append(np.flatnonzero(left_out), len(begins))
    rows: list[tuple[int, int]] = []
    number = 0
    while number < len(begins):
        if left_out[number]:
            number += 1
            continue
        first, limit = int(begins[number]), int(stops[np.searchsorted(stops, number)])
        number = max(number + 1, min(limit, int(np.searchsorted(ends, first + width, side="right"))))
        rows.append((first, min(int(ends[number - 1]), first + width)))
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def training_rows(corpus: Corpus, source: int, length: int, seed: int, report: Callable[[str], None]) -> Rows:
    """The rows of a source to train on. Raises DataError when there is not one."""
    tokens = corpus.train(source)
    if corpus.chats:
        return ChatRows(tokens, read_chats(corpus.directory, corpus.sources[source]), length, report)
    return TextRows(tokens, corpus.tokenizer().eos_id, Sampler(len(tokens), length, seed))


def held_out_rows(corpus: Corpus, length: int, report: Callable[[str], None]) -> Rows:
    """The rows to measure with. Raises DataError when there is not one."""
    tokens = corpus.validation()
    if corpus.chats:
        return ChatRows(tokens, read_chats(corpus.directory, [corpus.held_out]), length, report)
    return HeldOutText(tokens, corpus.tokenizer().eos_id, length)


def batch(rows: Iterable[Row], length: int, mask: bool) -> Batch:
    """``rows`` as a batch; with ``mask``, tokens see their own document only."""
    found = list(rows)
    tokens_BW = np.stack([row for row, _ in found]) if found else np.empty((0, length + 1), dtype=np.int64)
    if not mask:
        return Batch.of(torch.from_numpy(tokens_BW))
    documents_BT = np.zeros((len(found), length), dtype=np.int64)
    for document_T, (_, begins) in zip(documents_BT, found, strict=True):
        document_T[begins] = begins
    return Batch.of(torch.from_numpy(tokens_BW), torch.from_numpy(np.maximum.accumulate(documents_BT, axis=1)))


def _filled(row: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return np.pad(row, (0, length + 1 - len(row)), constant_values=NOT_COUNTED)
