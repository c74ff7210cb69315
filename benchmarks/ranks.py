"""Ranks as processes of this machine, for rows that measure what ranks do together."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from llmos.train.local import join

R = TypeVar("R")


def on_ranks(ranks: int, do: Callable[..., R], *args: Any) -> list[R]:
    """What ``do(*args)`` returns on each of ``ranks`` gloo ranks of one thread each. Raises what the first one raises."""
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit this process's threads in mid-work
    with (
        tempfile.TemporaryDirectory(prefix="llmos-ranks-") as directory,
        ProcessPoolExecutor(ranks, spawn) as pool,
    ):
        return list(pool.map(partial(_on_rank, ranks, directory, do, args), range(ranks)))


def _on_rank(ranks: int, directory: str, do: Callable[..., R], args: tuple[Any, ...], rank: int) -> R:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    join(directory, rank, ranks)
    try:
        return do(*args)
    finally:
        dist.destroy_process_group()
