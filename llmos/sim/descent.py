"""Descent: each pod goes where a loss of the node grows least. With expected fragmentation as the loss, it is FGD."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llmos.sim.fragmentation import Kind
from llmos.sim.openb import WHOLE, Shape
from llmos.sim.packing import SCORES, Packing

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
State = tuple[str, int, bytes]
"""GPU model, free cores, and what is free of each GPU, in ascending order."""
Outlook = tuple[Floats, Ints]


class Loss(Protocol):
    """What a state of a node is bad for."""

    def of(self, model: str, cpu_milli: Ints, free_milli: Ints) -> Floats:
        """The loss [S] in S states of a node with GPUs of ``model``: ``cpu_milli`` [S] of its cores are free and
        ``free_milli`` [S, G] of its GPUs."""


class Outlooks:
    """What each kind of pod would cost on a node, by the node's state. Worked out once for each state that occurs."""

    def __init__(self, shapes: Iterable[Shape], loss: Loss) -> None:
        kinds = list(dict.fromkeys(map(Kind.of, shapes)))
        self.row = {kind: number for number, kind in enumerate(kinds)}
        self._loss = loss
        self._cpu = np.array([kind.cpu_milli for kind in kinds], dtype=np.int64)
        self._gpus = np.array([kind.gpus for kind in kinds], dtype=np.int64)
        self._milli = np.array([kind.milli for kind in kinds], dtype=np.int64)
        self._known: dict[State, Outlook] = {}

    def at(self, model: str, cpu_milli: int, free_milli: Ints) -> Outlook:
        """By how much each kind [K] would raise the loss (infinity: no room), and what is free of the GPU it would
        share [K]. ``free_milli`` [G] is in ascending order."""
        state = model, cpu_milli, free_milli.tobytes()
        if state not in self._known:
            self._known[state] = self._work_out(model, cpu_milli, free_milli)
        return self._known[state]

    def _work_out(self, model: str, cpu_milli: int, free_milli: Ints) -> Outlook:
        kinds, firsts = self._ways(cpu_milli, free_milli)
        slots = np.arange(len(free_milli))
        taken = (slots >= firsts[:, None]) & (slots < (firsts + self._gpus[kinds])[:, None])
        after = free_milli - taken * self._milli[kinds][:, None]
        now = self._loss.of(model, np.array([cpu_milli]), free_milli[None])
        growth = self._loss.of(model, cpu_milli - self._cpu[kinds], after) - now
        best = np.lexsort((growth, kinds))  # ways of a kind together, the best first
        _, at = np.unique(kinds[best], return_index=True)
        best = best[at]
        costs, shared = np.full(len(self._cpu), np.inf), np.zeros(len(self._cpu), dtype=np.int64)
        costs[kinds[best]] = growth[best]
        if len(free_milli):
            shared[kinds[best]] = free_milli[np.minimum(firsts[best], len(free_milli) - 1)]
        return costs, shared

    def _ways(self, cpu_milli: int, free_milli: Ints) -> tuple[Ints, Ints]:
        """(kind, the first of the adjacent GPUs it takes): a way for each GPU that differs for a kind that needs one,
        the tightest for the others."""
        _, different = np.unique(free_milli, return_index=True)
        able = self._cpu <= cpu_milli
        one = (able & (self._gpus == 1))[:, None] & (free_milli[different] >= self._milli[:, None])
        kinds, which = np.nonzero(one)
        first = np.searchsorted(free_milli, self._milli)
        other = np.flatnonzero(able & (self._gpus != 1) & (first + self._gpus <= len(free_milli)))
        return np.concatenate((kinds, other)), np.concatenate((different[which], first[other]))


class Descent:
    """The node, and of its GPUs the one, on which a loss grows least.

    ``scored``: nodes are told apart by whole scores from 0 to 100, the logistic function of the growth in GPUs, as in
    the scheduler that the paper extends; those with the same score tie.
    """

    def __init__(self, packing: Packing, outlooks: Outlooks, *, scored: bool = False) -> None:
        self._packing = packing
        self._scored = scored
        self._outlooks = outlooks
        size = len(outlooks.row), len(packing.machines)
        self._costs = np.empty(size)
        self._shared = np.empty(size, dtype=np.int64)
        for node in range(len(packing.machines)):
            self.changed(node)

    def costs(self, shape: Shape) -> Floats:
        """See Policy."""
        costs: Floats = self._costs[self._outlooks.row[Kind.of(shape)]]
        return costs

    def gpus(self, shape: Shape, node: int) -> Ints:
        """See Policy."""
        if shape.gpus != 1:
            return self._packing.tightest(shape, node)
        shared = self._shared[self._outlooks.row[Kind.of(shape)], node]
        return np.flatnonzero(self._packing.free_milli[node] == shared)[:1]

    def changed(self, node: int) -> None:
        """See Policy."""
        packing = self._packing
        free = np.sort(packing.free_milli[node])
        costs, shared = self._outlooks.at(packing.models[node], int(packing.cpu_milli[node]), free)
        self._costs[:, node] = -np.floor(SCORES / (1 + np.exp(costs / WHOLE))) if self._scored else costs
        self._shared[:, node] = shared
