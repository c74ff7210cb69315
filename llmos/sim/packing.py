"""A cluster as arrays, onto which pods are packed one by one: what is free, and who fits where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmos.sim.openb import WHOLE, Machine, Shape

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
SCORES = 100
"""The highest score of a node in Kubernetes' scheduler; scores are whole numbers."""


class Packing:
    """What is free on N nodes of at most G GPUs each.

    ``cpu_milli`` and ``memory_mib`` are [N], ``free_milli`` is [N, G] (0 where a node has no such GPU), ``models`` the
    GPU model of each node.
    """

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.machines = tuple(machines)
        self.models = tuple(machine.model for machine in machines)
        self.cpu_milli = np.array([machine.cpu_milli for machine in machines], dtype=np.int64)
        self.memory_mib = np.array([machine.memory_mib for machine in machines], dtype=np.int64)
        gpus = np.array([machine.gpus for machine in machines], dtype=np.int64)
        self.free_milli: Ints = WHOLE * (np.arange(max(gpus, default=0)) < gpus[:, None]).astype(np.int64)
        self.capacity_milli = int(gpus.sum()) * WHOLE
        self._model = np.array(self.models)

    def fits(self, shape: Shape) -> Bools:
        """Which nodes [N] can take ``shape`` now."""
        able = (self.cpu_milli >= shape.cpu_milli) & (self.memory_mib >= shape.memory_mib)
        if shape.gpus == 1:
            able &= self.free_milli.max(1, initial=0) >= shape.milli
        elif shape.gpus:
            able &= (self.free_milli >= shape.milli).sum(1) >= shape.gpus
        if shape.models:
            able &= np.isin(self._model, list(shape.models))
        return able

    def take(self, shape: Shape, node: int, gpus: Sequence[int] | Ints) -> None:
        """Give ``shape`` its share of ``node``, on the GPUs with these indices."""
        self.cpu_milli[node] -= shape.cpu_milli
        self.memory_mib[node] -= shape.memory_mib
        if len(gpus):
            self.free_milli[node, gpus] -= shape.milli

    def tightest(self, shape: Shape, node: int) -> Ints:
        """The indices of the GPUs of ``node`` that have the least left and still hold ``shape``."""
        free = self.free_milli[node]
        order = np.argsort(free, kind="stable")
        chosen: Ints = order[free[order] >= shape.milli][: shape.gpus]
        return chosen

    @property
    def allocated_pct(self) -> float:
        """Per cent of all GPUs, in thousandths of one, that are given out."""
        return 100 * (1 - int(self.free_milli.sum()) / max(1, self.capacity_milli))
