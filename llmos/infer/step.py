"""One forward pass over the pages of the key-value cache: what a runner is asked, and what it answers.

Everything is a plain numpy array, so that a step can be sent to the other ranks of a group, and handed to native code.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmos.infer.prefix import BLOCK_TOKENS

__all__ = ["BLOCK_TOKENS", "Better", "Ints", "Runner", "Step", "Watched"]

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Step:
    """The new tokens of S sequences, one sequence after another, N in all.

    Sequence s has tokens ``starts_S[s]`` to ``starts_S[s + 1]`` - 1 (``starts_S`` has S + 1 entries). A token at
    position p of sequence s has its key and value in block ``blocks_SM[s, p // BLOCK_TOKENS]``, slot
    p % BLOCK_TOKENS, and sees the positions 0 to p there; unused entries of ``blocks_SM`` are 0. Its keys and values
    are written before they are read. ``logits_at_L`` are the tokens (indices below N) whose logits are wanted.
    """

    tokens_N: Ints
    positions_N: Ints
    starts_S: Ints
    blocks_SM: Ints
    logits_at_L: Ints


class Runner(Protocol):
    """Computes steps, in the order in which they were started; the cache of ``blocks`` blocks is its own."""

    vocab_size: int
    blocks: int
    depth: int
    """Steps that may be started before the first is finished: 1, or the number of pipeline stages."""

    def start(self, step: Step) -> None:
        """Begin ``step``. Its sequences are in no other step that is not finished."""
        ...

    def finish(self) -> Tensor:
        """Wait for the oldest step. Returns logits [L, V], float32, on the runner's device. Raises EngineError."""
        ...

    def stats(self) -> dict[str, object]:
        """Where the memory went and which kernels run, JSON-able: for the log and for operators."""
        ...

    def close(self) -> None:
        """Free what it holds; ends its processes."""
        ...


Better = Future[Callable[[], Runner]]
"""A runner on its way. What comes is called once nothing else computes, for it may try how it is fastest."""


@runtime_checkable
class Watched(Protocol):
    """A runner that can be lost while nothing runs: its processes are others."""

    def watch(self) -> None:
        """Look whether it is there; takes no time. Raises EngineError when it is not."""
        ...
