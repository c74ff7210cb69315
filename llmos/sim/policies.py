"""Who goes where, one pod at a time: the policies of ``llmos simulate openb``.

A policy gives each node a cost for a pod; the cheapest node that fits takes it, one of those that tie by lot.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from llmos.sim.openb import UNLIMITED, WHOLE, Shape
from llmos.sim.packing import SCORES, Packing

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Policy(Protocol):
    """What decides. It reads the packing it was made for, and is told of every change to it."""

    def costs(self, shape: Shape) -> Floats:
        """What it costs to put ``shape`` on each node [N]. Those that cannot take it may have any cost."""

    def gpus(self, shape: Shape, node: int) -> Ints:
        """The indices of the GPUs of ``node`` that ``shape`` gets."""

    def changed(self, node: int) -> None:
        """Something was put on ``node``."""


class Random:
    """Any node that fits, any GPU of it that fits."""

    def __init__(self, packing: Packing, rng: np.random.Generator) -> None:
        self._packing = packing
        self._rng = rng

    def costs(self, shape: Shape) -> Floats:
        """See Policy."""
        return np.zeros(len(self._packing.machines))

    def gpus(self, shape: Shape, node: int) -> Ints:
        """See Policy."""
        able = np.flatnonzero(self._packing.free_milli[node] >= shape.milli)
        return self._rng.permutation(able)[: shape.gpus]

    def changed(self, node: int) -> None:
        """See Policy. Nothing is remembered."""
        del node


class BestFit:
    """The node with the least left once the pod is there, the GPU with the least left.

    What is left is the mean over cores and GPUs, each as a share of the most that a node has, in whole per cents: the
    scores of Kubernetes' scheduler are whole numbers from 0 to 100.
    """

    def __init__(self, packing: Packing) -> None:
        machines = packing.machines
        cores = max((machine.cpu_milli for machine in machines if machine.cpu_milli < UNLIMITED), default=0)
        gpus_milli = max((machine.gpus for machine in machines), default=0) * WHOLE
        self._packing = packing
        self._per_core, self._per_milli = SCORES / 2 / max(1, cores), SCORES / 2 / max(1, gpus_milli)
        self._left = packing.cpu_milli * self._per_core + packing.free_milli.sum(1) * self._per_milli

    def costs(self, shape: Shape) -> Floats:
        """See Policy."""
        left: Floats = np.floor(self._left - shape.cpu_milli * self._per_core - shape.gpu_milli * self._per_milli)
        return left

    def gpus(self, shape: Shape, node: int) -> Ints:
        """See Policy."""
        return self._packing.tightest(shape, node)

    def changed(self, node: int) -> None:
        """See Policy."""
        free_milli = self._packing.free_milli[node].sum()
        self._left[node] = self._packing.cpu_milli[node] * self._per_core + free_milli * self._per_milli
