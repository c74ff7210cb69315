"""Steps of one token for each sequence as CUDA graphs: a step of hundreds of small kernels is launched as one.

A graph has fixed shapes: one is captured for each size that is met, of sequences and of blocks, both rounded up to
powers of 2. Rows that are not used read and write a spare block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llmos.infer.step import BLOCK_TOKENS, Step

if TYPE_CHECKING:
    from llmos.infer.torch_runner import TorchRunner

MOST_SEQUENCES, FEWEST_BLOCKS = 512, 8
_WARM_UP = 2

Compute = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class _Graph:
    """``table_SX`` has a row for each sequence: its token, its position, its blocks. ``run`` gives logits [S, V]."""

    table_SX: Tensor
    run: Compute


def captured(compute: Compute) -> Compute:
    """``compute`` as a CUDA graph: its result is the same tensor every time."""
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            compute()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool()):
        result = compute()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class DecodeGraphs:
    """The graphs of a runner that has the whole model; ``capture`` makes them."""

    def __init__(self, runner: TorchRunner, capture: Callable[[Compute], Compute]) -> None:
        self._runner, self._capture = runner, capture
        self._graphs: dict[tuple[int, int], _Graph] = {}

    @torch.inference_mode()
    def run(self, step: Step) -> Tensor | None:
        """Logits [S, V] of a step with one token, whose logits are wanted, for each sequence; None for another.

        They are overwritten by the next run.
        """
        count, pages = len(step.starts_S) - 1, self._runner.pages
        if not len(step.tokens_N) == len(step.logits_at_L) == count <= MOST_SEQUENCES:
            return None
        used_S = step.positions_N // BLOCK_TOKENS
        sequences, blocks = _power(count), max(FEWEST_BLOCKS, _power(int(used_S.max()) + 1))
        table_SX = np.full((sequences, 2 + blocks), pages.nowhere, np.int32)
        table_SX[:, :2], table_SX[count:, 2] = 0, pages.spare
        table_SX[:count, 0], table_SX[:count, 1] = step.tokens_N, step.positions_N
        width = min(blocks, step.blocks_SM.shape[1])
        there_SM = np.arange(width) <= used_S[:, None]
        table_SX[:count, 2 : 2 + width] = np.where(there_SM, step.blocks_SM[:, :width], pages.nowhere)
        new_S = step.positions_N % BLOCK_TOKENS == 0
        pages.clear(step.blocks_SM[new_S, used_S[new_S]])
        graph = self._graph(table_SX)
        graph.table_SX.copy_(torch.from_numpy(table_SX), non_blocking=True)
        return graph.run()[:count]

    def _graph(self, table_SX: np.ndarray[tuple[int, int], np.dtype[np.int32]]) -> _Graph:
        """The graph for tables of this shape, captured with this one: it writes what will be written again."""
        if (graph := self._graphs.get(table_SX.shape)) is None:
            runner = self._runner
            held_SX = torch.from_numpy(table_SX).to(runner.device).clone()

            def compute() -> Tensor:
                tokens_S, positions_S, blocks_SM = held_SX[:, 0], held_SX[:, 1].long(), held_SX[:, 2:].long()
                plan = runner.pages.one_each(positions_S, blocks_SM, runner.config.sliding_window)
                return runner.logits(runner.hidden(tokens_S, positions_S, plan))

            graph = self._graphs[table_SX.shape] = _Graph(held_SX, self._capture(compute))
        return graph


@cache
def _pool() -> Any:
    """The memory that all graphs share: only one runs at a time."""
    return torch.cuda.graph_pool_handle()


def _power(count: int) -> int:
    """The power of 2 that is no less."""
    return 1 << (count - 1).bit_length()
