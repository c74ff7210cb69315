"""How many nodes of each kind the autoscaler should keep.

Those that hold something, and those that the waiting jobs would start on, in order: idle nodes first, then new ones. A
gang that has to wait until others end keeps those of its nodes that are idle meanwhile; new ones are started for it
when it can begin. What is above that may go: who removes a node drains it first. A kind whose launches fail gets no
more until its pause is over, and keeps those it has: the others of a gang may have come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from llmos.core.free import SHUT, Columns, Grid, Matrix
from llmos.core.resources import ROUNDING, Node
from llmos.core.shape import Shape, Shapes
from llmos.core.types import Job, NodeKind

MOST_AT_ONCE = 256
"""So many nodes of a kind are asked for at a time; more when these are there and jobs still wait."""
_NEW = "~"  # sorts after the names of nodes: of two that are equal, the one that is there already is taken


def wanted(
    kinds: Sequence[NodeKind], grid: Grid, free: Matrix, unserved: Matrix, jobs: Iterable[Job], now: float
) -> tuple[dict[str, int], dict[str, str]]:
    """The number of nodes of each kind that should be there, and what each job that needs one more waits for.

    ``free`` is what is left on the nodes of ``grid``, ``unserved`` what would be if no job ran; ``jobs`` are those that
    wait for room, in order.
    """
    if not kinds:
        return {}, {}
    whole = Grid([*grid.nodes, *(node for kind in kinds for node in _startable(kind, grid, now))])
    hope, shapes, waits = _Hope(whole, grid, free, unserved), Shapes(whole), {}
    idle = {grid.ids[column] for column in np.flatnonzero((free >= grid.total - ROUNDING).all(axis=0))}
    new: set[str] = set()
    for job in jobs:
        shape = shapes(job.gang)
        columns = hope.start(shape)
        on = [whole.ids[column] for column in (() if columns is None else columns)]
        starting = {id for id in on if id.startswith(_NEW)}
        new |= starting
        waits[job.id] = _trouble(kinds, now) if columns is None else _starting(whole, starting)
        idle.difference_update(hope.keep(shape) if columns is None and idle else on)
    counts = Counter(whole.nodes[whole.columns[id]].kind for id in new.union(grid.ids) - idle)
    kept = {kind.name: _there(kind, grid) for kind in kinds if now < kind.not_before}
    nodes = {kind.name: min(max(counts[kind.name], kind.fewest, kept.get(kind.name, 0)), kind.most) for kind in kinds}
    return nodes, {id: text for id, text in waits.items() if text}


class _Hope:
    """Where jobs that wait may start, on the nodes of ``grid`` and on those of ``whole`` that could be started: with
    what is ``free``, or once all jobs have ended."""

    def __init__(self, whole: Grid, grid: Grid, free: Matrix, unserved: Matrix) -> None:
        self._now = _extended(whole, grid, free)
        self._later = _extended(whole, grid, unserved)
        self._ids = whole.ids
        self._there = [whole.columns[id] for id in grid.ids]
        self._full: set[Shape] = set()
        self._lost: set[Shape] = set()

    def start(self, shape: Shape) -> Columns | None:
        """The node for each bundle of ``shape``, which gets what it needs, if there is room without anybody's end."""
        columns = None if shape in self._full else shape.place(self._now)
        if columns is None:
            self._full.add(shape)
            return None
        held = shape.held(columns)
        held.take(self._now)
        held.take(self._later)
        return columns

    def keep(self, shape: Shape) -> Iterable[str]:
        """The nodes on which ``shape`` would be once others have ended: those with most free for choice, and only then
        those that are not there yet. None if it never could."""
        prefer = np.full_like(self._now, SHUT)
        prefer[:, self._there] = self._now[:, self._there]
        columns = None if shape in self._lost else shape.place(self._later, prefer)
        if columns is None:
            self._lost.add(shape)
            return ()
        shape.held(columns).take(self._later)
        return map(self._ids.__getitem__, columns)


def _extended(whole: Grid, grid: Grid, amounts: Matrix) -> Matrix:
    """``amounts`` of the nodes of ``grid`` as those of ``whole``, and all that its other nodes have."""
    left = whole.usable.copy()
    if whole.custom == grid.custom:
        left[:, [whole.columns[id] for id in grid.ids]] = amounts
    else:
        for id, column in grid.columns.items():
            left[:, whole.columns[id]] = whole.vector(grid.resources(amounts[:, column])) or 0.0
    return left


def _startable(kind: NodeKind, grid: Grid, now: float) -> Iterator[Node]:
    """The nodes of ``kind`` that could be started now, beside those that are there."""
    if now < kind.not_before:
        return
    for i in range(min(kind.most - _there(kind, grid), MOST_AT_ONCE)):
        yield Node(f"{_NEW}{kind.name}-{i:06}", kind.total, labels=kind.labels, kind=kind.name)


def _starting(whole: Grid, ids: Iterable[str]) -> str:
    """What a job waits for, for which the nodes ``ids`` are started."""
    kinds = sorted({whole.nodes[whole.columns[id]].kind for id in ids})
    return f"; a node of kind {' and of '.join(kinds)} is to be started for it" if kinds else ""


def _there(kind: NodeKind, grid: Grid) -> int:
    """How many nodes of ``kind`` take work."""
    return sum(node.kind == kind.name for node in grid.nodes)


def _trouble(kinds: Iterable[NodeKind], now: float) -> str:
    """Why no node is started, if it is because launches failed."""
    held = [kind for kind in kinds if now < kind.not_before and kind.trouble]
    return "".join(
        f"; no node of kind {kind.name} for {kind.not_before - now:.0f} s: {kind.trouble}" for kind in held[:1]
    )
