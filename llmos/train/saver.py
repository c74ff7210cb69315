"""Saving beside training: the step's path pays for a copy in memory, a thread does the rest.

Measured by ``benchmarks/checkpoint_rows.py``.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from llmos.errors import CheckpointError
from llmos.parallel.world import World
from llmos.spec import CheckpointPolicy
from llmos.train import checkpoint
from llmos.train.checkpoint import Checkpoint
from llmos.train.copies import Copies
from llmos.train.shards import Piece

_NICENESS = 10
"""How much the writing thread steps back behind those that train, on Linux, where niceness is a thread's."""

log = logging.getLogger("llmos.train")


class Saver:
    """Saves the checkpoints of a training under ``directory``, one at a time, as ``policy`` says. One on each rank.

    The ranks' writing threads talk in a process group of their own. With ``policy.asynchronous`` the host memory for a
    copy of what this rank writes is held from the first save on. ``copies``, on rank 0, is told of each checkpoint.
    """

    def __init__(self, directory: Path, policy: CheckpointPolicy, world: World, copies: Copies | None = None) -> None:
        self._directory, self._policy, self._copies = directory, policy, copies
        self._world, self._on_gpu = world.apart(), world.device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_step_back)
        self._saving: Future[Path] | None = None
        self._buffers: dict[str, Tensor] = {}

    def save(self, snapshot: Checkpoint) -> float:
        """Begin to save ``snapshot``, whose tensors may change afterwards. Returns how long this took, in seconds.

        Waits for the one before it. A checkpoint that cannot be written is logged, and training may go on: the ones
        before it are still there, and :meth:`wait` says whether the last one is. Collective.
        """
        began = time.perf_counter()
        with suppress(CheckpointError):
            self.wait()
        parts = checkpoint.share(snapshot, self._world)
        if self._policy.asynchronous:
            parts = self._staged(parts)
        self._saving = self._thread.submit(self._write, snapshot, parts)
        if not self._policy.asynchronous:
            with suppress(CheckpointError):
                self.wait()
        return time.perf_counter() - began

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._saving is not None and not self._saving.done()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk. Raises CheckpointError, on every rank, when it cannot be."""
        if self._saving is not None:
            self._saving.result()

    def close(self) -> None:
        """Wait for what is being written and copied, whatever becomes of it, and end the thread."""
        self._thread.shutdown()
        if self._copies:
            self._copies.close()
        if self._world.group is not None:
            dist.destroy_process_group(self._world.group)

    def _staged(self, parts: Sequence[Piece]) -> list[Piece]:
        """``parts`` in host memory that nobody else writes to."""
        staged = [replace(part, data=self._buffer(part).copy_(part.data, non_blocking=True)) for part in parts]
        if self._on_gpu:
            torch.cuda.synchronize()
        return staged

    def _buffer(self, part: Piece) -> Tensor:
        found = self._buffers.get(part.name)
        if found is None or found.shape != part.data.shape:
            found = torch.empty(part.data.shape, dtype=part.data.dtype, pin_memory=self._on_gpu)
            self._buffers[part.name] = found
        return found

    def _write(self, snapshot: Checkpoint, parts: Sequence[Piece]) -> Path:
        try:
            path = checkpoint.write(self._directory, snapshot, parts, self._policy, self._world)
        except CheckpointError as error:
            if self._world.first:
                log.error("CHECKPOINT NOT SAVED: %s", error)
            raise
        if self._world.first:
            log.info("saved %s", path)
        if self._copies:
            self._copies.update()
        return path


def _step_back() -> None:
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS))
