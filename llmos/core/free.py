"""Free resources as a matrix, and placement on it: what ``placement`` does node by node, for 10,000 nodes at once.

A matrix has a row per kind of resource (``CPU``, ``GPU``, ``MEMORY``, then the custom ones by name) and a column per
node, in the order of node ids: numpy then works on one kind of all nodes at a time, which lie side by side in memory.
Amounts are whole multiples of GRAIN, so that sums are exact: what is free does not depend on the order in which it was
taken and given back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.core.resources import ROUNDING, Node, Resources

Matrix = npt.NDArray[np.float64]
Columns = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

CPU, GPU, MEMORY, CUSTOM = 0, 1, 2, 3
GRAIN = 2.0**-30
"""Amounts are rounded to multiples of this; sums up to eight million have no rounding error then."""
_FEW = 8
"""So many are given back one by one."""
SHUT = -1e30
"""What a node that takes nothing has free: so little that nothing given back makes it usable."""


class Grid:
    """The nodes that take work: which column each is, what each has (``total``), what llmos may use (``usable``).
    ``draining`` are the ids of those that take none any more."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        there = sorted(nodes, key=lambda node: node.id)
        self.nodes = [node for node in there if not node.draining]
        self.draining = [node.id for node in there if node.draining]
        self.ids = [node.id for node in self.nodes]
        self.columns = {id: i for i, id in enumerate(self.ids)}
        self.custom = sorted({name for node in self.nodes for name, _ in node.total.custom})
        self.tolerance = np.full(CUSTOM + len(self.custom), ROUNDING)
        self.tolerance[MEMORY] = 0.0  # bytes are whole
        self.total = self._matrix([node.total for node in self.nodes])
        self.whole: list[float] = self.total.sum(axis=1).tolist()  # by kind, of all nodes together
        foreign = self._matrix([node.foreign for node in self.nodes])
        self.usable = self.total - foreign
        some: list[int | slice] = [GPU, *([slice(CUSTOM, None)] if self.custom else []), CPU, MEMORY]
        # what sizes are compared by, in order, without the kinds of which no node has any
        self.ranked = [kinds for kinds in some if self.total[kinds].any() or self.usable[kinds].any()]
        self._labels = [dict(node.labels) for node in self.nodes] if any(node.labels for node in self.nodes) else []
        self._masks: dict[tuple[tuple[str, str], ...], Mask] = {}
        self._domains: dict[str, tuple[Columns, list[str]]] = {}

    def vector(self, amount: Resources) -> list[float] | None:
        """``amount`` by kind of resource. None if it asks for a kind that no node has."""
        custom = dict(amount.custom)
        if any(value > ROUNDING and name not in self.custom for name, value in amount.custom):
            return None
        values = [amount.cpus, amount.gpus, amount.memory_bytes, *(custom.get(name, 0.0) for name in self.custom)]
        return [round(value / GRAIN) * GRAIN for value in values]

    def resources(self, vector: Iterable[float]) -> Resources:
        """The amount that ``vector`` stands for."""
        cpus, gpus, memory, *custom = (float(value) for value in vector)
        named = tuple((name, value) for name, value in zip(self.custom, custom, strict=True) if value)
        return Resources(cpus, gpus, int(memory), named)

    def mask(self, labels: tuple[tuple[str, str], ...]) -> Mask | None:
        """Which nodes have ``labels``; None: all are allowed."""
        if not labels:
            return None
        if labels not in self._masks:
            allowed = [(name, frozenset(values.split("|"))) for name, values in labels]
            found = [all(own.get(name) in values for name, values in allowed) for own in self._labels]
            self._masks[labels] = np.array(found or [False] * len(self.ids), dtype=bool)
        return self._masks[labels]

    def domains(self, label: str) -> tuple[Columns, list[str]]:
        """The number of each node's value of ``label`` (-1 where it has none), and the values in order."""
        if label not in self._domains:
            own = [labels.get(label) for labels in self._labels] or [None] * len(self.ids)
            values = sorted({value for value in own if value is not None})
            number = {value: i for i, value in enumerate(values)}
            codes = [-1 if value is None else number[value] for value in own]
            self._domains[label] = np.array(codes, dtype=np.int64), values
        return self._domains[label]

    def locate(self, nodes: Iterable[str]) -> Columns:
        """The column of each of ``nodes``; -1 for those that take no work."""
        return np.fromiter((self.columns.get(node, -1) for node in nodes), dtype=np.int64)

    def _matrix(self, amounts: Sequence[Resources]) -> Matrix:
        matrix = np.zeros((len(self.tolerance), len(amounts)))
        for row, name in ((CPU, "cpus"), (GPU, "gpus"), (MEMORY, "memory_bytes")):
            matrix[row] = np.fromiter((getattr(amount, name) for amount in amounts), dtype=float, count=len(amounts))
        for i, amount in enumerate(amounts):
            for name, value in amount.custom:
                if name in self.custom:
                    matrix[CUSTOM + self.custom.index(name), i] = value
        return np.rint(matrix / GRAIN) * GRAIN


class Held:
    """What something holds: ``amounts`` (kinds, columns) on ``columns``, each there once."""

    __slots__ = ("amounts", "columns", "total")

    def __init__(self, columns: Columns, amounts: Matrix, total: list[float] | None = None) -> None:
        self.columns = columns
        self.amounts = amounts
        self.total: list[float] = amounts.sum(axis=1).tolist() if total is None else total  # by kind

    def take(self, free: Matrix) -> None:
        """Take it from ``free``."""
        free[:, self.columns] -= self.amounts

    def give(self, free: Matrix) -> None:
        """Give it back to ``free``."""
        free[:, self.columns] += self.amounts


def added(held: Sequence[Held], free: Matrix) -> Matrix:
    """``free`` once all of ``held`` was given back. One pass over all of it, if there are many."""
    later = free.copy()
    if len(held) <= _FEW:
        for one in held:
            one.give(later)
    else:
        columns = np.concatenate([one.columns for one in held])
        amounts = np.concatenate([one.amounts for one in held], axis=1)
        for row, amount in zip(later, amounts, strict=True):
            row += np.bincount(columns, weights=amount, minlength=len(row))
    return later


def without(held: Sequence[Held], free: Matrix) -> Matrix:
    """``free`` once all of ``held`` was taken: the opposite of :func:`added`."""
    if len(held) > _FEW:
        return free - added(held, np.zeros_like(free))
    left = free.copy()
    for one in held:
        one.take(left)
    return left


def tightest(free: Matrix, columns: Columns, grid: Grid) -> Columns:
    """The first of ``columns`` in :func:`size_order`, which is found without bringing all into order."""
    for kinds in grid.ranked:
        if len(columns) == 1:
            break
        of_each = free[kinds, columns] if isinstance(kinds, int) else free[kinds, :][:, columns].sum(axis=0)
        columns = columns[of_each == np.minimum.reduce(of_each)]
    return columns[:1]


def size_order(free: Matrix, columns: Columns) -> Any:
    """The order of ``columns`` by how much is free: GPUs, then custom resources, CPUs, memory, then the node's id."""
    part = free[:, columns]
    custom = (part[CUSTOM:].sum(axis=0),) if len(part) > CUSTOM else ()
    return np.lexsort((part[MEMORY], part[CPU], *custom, part[GPU]))
