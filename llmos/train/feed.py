"""The samples of each step, read before they are asked for.

What a step reads is a pure function of the seed and the step's number, and of how many batches training has moved past
without a step. There is no state to save, and the number of ranks does not enter: whatever ranks an attempt has, step
by step they read the same samples together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from llmos.files import append_json
from llmos.spec import TrainJob
from llmos.train import rows
from llmos.train.batch import Batch
from llmos.train.data import Corpus
from llmos.train.mixture import Mixture
from llmos.train.sampler import visits

_AHEAD = 2
"""Steps that are read in advance: reading one takes a small part of a step, so more would only take memory."""


class Feed:
    """One rank's samples. ``share`` are its places among the ``job.batch_size`` of a step.

    With ``log``, a file, each step's samples are written down as they are taken: ``source/epoch/row``.
    """

    def __init__(
        self,
        job: TrainJob,
        corpus: Corpus,
        share: range,
        device: torch.device,
        report: Callable[[str], None],
        log: Path | None = None,
    ) -> None:
        """Raises DataError when a source has not even one sample, or its files are damaged."""
        self._job, self._share, self._device, self._log = job, share, device, log
        length, sources = job.sequence_length, range(len(corpus.sources))
        self._sources = [rows.training_rows(corpus, source, length, job.seed, report) for source in sources]
        self._mixture = Mixture.of([source.weight for source in job.data.mixture], job.seed)
        self._mask = job.masks_documents
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._pending: dict[int, Future[tuple[Batch, list[str]]]] = {}

    def take(self, step: int, skipped: int = 0) -> tuple[Batch, float]:
        """This rank's samples of ``step`` (from 0), and the seconds that it took to wait for them.

        They are those of batch ``step`` + ``skipped``. Raises DataError.
        """
        began_s = time.perf_counter()
        number, last = step + skipped, self._job.steps + skipped
        ahead = range(number, max(number + 1, min(number + 1 + _AHEAD, last)))
        self._pending = {n: self._pending.get(n) or self._reader.submit(self._read, n) for n in ahead}
        batch, ids = self._pending.pop(number).result()
        if self._log:
            append_json(self._log, {"step": step + 1, "ids": ids})
        return batch, time.perf_counter() - began_s

    def ids(self, number: int) -> list[str]:
        """The samples of batch ``number`` (from 0), all ranks': ``source/epoch/row``."""
        return [f"{source}/{epoch}/{row}" for source, epoch, row in self._places(number, range(self._job.batch_size))]

    def _read(self, number: int) -> tuple[Batch, list[str]]:
        places = self._places(number, self._share)
        found = [self._sources[source].read(epoch, window) for source, epoch, window in places]
        batch = rows.batch(found, self._job.sequence_length, self._mask).to(self._device)
        return batch, [f"{source}/{epoch}/{window}" for source, epoch, window in places]

    def _places(self, number: int, share: range) -> list[tuple[int, int, int]]:
        """Source, epoch and row of the ``share`` of batch ``number``."""
        first = number * self._job.batch_size
        sources, ordinals = self._mixture.at(first + share.start, first + share.stop)
        epochs, windows = np.empty_like(ordinals), np.empty_like(ordinals)
        for source in np.unique(sources):
            of = sources == source
            epochs[of], windows[of] = visits(ordinals[of], self._sources[source].count, self._job.seed)
        return list(zip(sources.tolist(), epochs.tolist(), windows.tolist(), strict=True))
