"""Ranks as processes of this machine, for rows that measure what ranks do together."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from llmos.train.local import join

R = TypeVar("R")
TIMEOUT_S = 300.0


def on_ranks(ranks: int, do: Callable[..., R], *args: Any) -> list[R]:
    """What ``do(*args)`` returns on each of ``ranks`` gloo ranks of one thread each.

    Raises RuntimeError when one fails; the others, which may wait for it, are ended.
    """
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit this process's threads in mid-work
    with tempfile.TemporaryDirectory(prefix="llmos-ranks-") as directory:
        try:
            with ProcessPoolExecutor(ranks, spawn) as pool:
                return list(pool.map(partial(_on_rank, ranks, directory, do, args), range(ranks)))
        except BrokenProcessPool as broken:
            said = sorted(Path(directory).glob("error-*"), key=lambda path: path.stat().st_mtime)
            raise RuntimeError(said[0].read_text() if said else "a rank was killed") from broken


def _on_rank(ranks: int, directory: str, do: Callable[..., R], args: tuple[Any, ...], rank: int) -> R:
    torch.set_num_threads(1)
    join(directory, rank, ranks, TIMEOUT_S)
    try:
        result = do(*args)
    except Exception as error:
        traceback.print_exc()
        (Path(directory) / f"error-{rank}").write_text(f"rank {rank}: {type(error).__name__}: {error}")
        os._exit(1)  # ends the pool: others wait for this rank
    dist.destroy_process_group()
    return result
