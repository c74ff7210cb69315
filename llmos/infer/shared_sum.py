"""Sums over the ranks of a tp group on one machine, through memory that they share.

A decode step sums a few thousand numbers twice a layer. Over gloo each sum wakes threads of every rank; here a rank
writes its part, says so, and watches for the others.
"""

from __future__ import annotations

import mmap
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

ROOM = 1 << 18
"""Numbers (float32) summed at once; more are summed in parts."""
_LINE_BYTES = 64
_WATCHED, _YIELDED = 2000, 20000
"""How often to look at once, and then letting others run, before sleeping between looks."""
_SLEEP_S = 5e-5
_ORDERED = ("x86_64", "AMD64")
"""Processors on which others see what one writes in the order in which it does."""


def shared_directory() -> Path | None:
    """Where files are memory."""
    directory = Path("/dev/shm")  # noqa: S108 - the file is made by mkstemp, and unlinked at once
    return directory if directory.is_dir() and platform.machine() in _ORDERED else None


class SharedSum:
    """The sum over ``ranks`` ranks, of which this is ``rank``, through the file at ``path``, which all open.

    Parts lie in two sets, used in turn: whoever writes a part of sum i + 2 knows, as all have written theirs of i + 1,
    that all have read those of i.
    """

    def __init__(self, path: Path, rank: int, ranks: int) -> None:
        self._rank, self._ranks, self._count = rank, ranks, 0
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), size_bytes(ranks))
        self._said = memoryview(self._memory)[: ranks * _LINE_BYTES].cast("q")
        parts = np.frombuffer(self._memory, np.float32, offset=ranks * _LINE_BYTES).reshape(2, ranks, ROOM)
        self._parts_2RX = torch.from_numpy(parts)

    def __call__(self, part: Tensor) -> None:
        """Sum the ranks' ``part``, float32 and contiguous, in place: the same on every rank, to the last bit."""
        for some in part.view(-1).split(ROOM):
            self._count += 1
            parts_RX = self._parts_2RX[self._count % 2, :, : len(some)]
            parts_RX[self._rank] = some
            self._said[self._rank * (_LINE_BYTES // 8)] = self._count
            self._wait()
            torch.sum(parts_RX, 0, out=some)

    def _wait(self) -> None:
        said, count = self._said, self._count
        for at in range(0, self._ranks * (_LINE_BYTES // 8), _LINE_BYTES // 8):
            looks = 0
            while said[at] < count:
                looks += 1
                if looks > _YIELDED:
                    time.sleep(_SLEEP_S)
                elif looks > _WATCHED:
                    os.sched_yield()


def size_bytes(ranks: int) -> int:
    """Of the file for ``ranks`` ranks."""
    return ranks * (_LINE_BYTES + 2 * ROOM * 4)


def agree(store: dist.Store, name: str, rank: int, ranks: int) -> SharedSum | None:
    """The sum of a group called ``name``, if all its ranks can open the same memory; else None for all of them."""
    directory = shared_directory()
    path = _made(directory, ranks) if rank == 0 and directory else None
    if rank == 0:
        store.set(f"{name}/file", str(path or ""))
    found = store.get(f"{name}/file").decode()
    made = SharedSum(Path(found), rank, ranks) if found and os.path.exists(found) else None
    store.set(f"{name}/{rank}", "yes" if made else "no")
    answers: Sequence[bytes] = [store.get(f"{name}/{other}") for other in range(ranks)]
    if path is not None:
        path.unlink()
    return made if all(answer == b"yes" for answer in answers) else None


def _made(directory: Path, ranks: int) -> Path:
    descriptor, path = tempfile.mkstemp(prefix="llmos-", dir=directory)
    os.ftruncate(descriptor, size_bytes(ranks))
    os.close(descriptor)
    return Path(path)
