"""How many nodes of each kind the autoscaler should keep.

Those that hold something, and those that the waiting jobs would start on, in order: idle nodes first, then new ones.
What is above that may go: who removes a node drains it first. A kind whose launches fail gets no more until its pause
is over, and keeps those it has: the others of a gang may have come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from llmos.core.free import Grid, Matrix
from llmos.core.resources import ROUNDING, Node
from llmos.core.shape import Shape, Shapes
from llmos.core.types import Job, NodeKind

MOST_AT_ONCE = 256
"""So many nodes of a kind are asked for at a time; more when these are there and jobs still wait."""
_NEW = "~"  # sorts after the names of nodes: of two that are equal, the one that is there already is taken


def wanted(
    kinds: Sequence[NodeKind], grid: Grid, free: Matrix, jobs: Iterable[Job], now: float
) -> tuple[dict[str, int], dict[str, str]]:
    """The number of nodes of each kind that should be there, and what each job that needs one more waits for.

    ``free`` is what is left on the nodes of ``grid``; ``jobs`` are those that wait for room, in order.
    """
    if not kinds:
        return {}, {}
    whole = Grid([*grid.nodes, *(node for kind in kinds for node in _startable(kind, grid, now))])
    left = whole.usable.copy()
    if whole.custom == grid.custom:
        left[:, [whole.columns[id] for id in grid.ids]] = free
    else:
        for id, column in grid.columns.items():
            left[:, whole.columns[id]] = whole.vector(grid.resources(free[:, column])) or 0.0
    shapes, waits, hopeless = Shapes(whole), {}, set[Shape]()
    used = {grid.ids[column] for column in np.flatnonzero((free < grid.total - ROUNDING).any(axis=0))}
    for job in jobs:
        shape = shapes(job.gang)
        columns = None if shape in hopeless else shape.place(left)
        if columns is None:
            hopeless.add(shape)
            waits[job.id] = _trouble(kinds, now)
            continue
        shape.held(columns).take(left)
        used.update(whole.ids[column] for column in columns)
        starting = sorted({whole.nodes[column].kind for column in columns if whole.ids[column].startswith(_NEW)})
        waits[job.id] = f"; a node of kind {' and of '.join(starting)} is to be started for it" if starting else ""
    counts = Counter(whole.nodes[whole.columns[id]].kind for id in used)
    kept = {kind.name: _there(kind, grid) for kind in kinds if now < kind.not_before}
    nodes = {kind.name: min(max(counts[kind.name], kind.fewest, kept.get(kind.name, 0)), kind.most) for kind in kinds}
    return nodes, {id: text for id, text in waits.items() if text}


def _startable(kind: NodeKind, grid: Grid, now: float) -> Iterator[Node]:
    """The nodes of ``kind`` that could be started now, beside those that are there."""
    if now < kind.not_before:
        return
    for i in range(min(kind.most - _there(kind, grid), MOST_AT_ONCE)):
        yield Node(f"{_NEW}{kind.name}-{i:06}", kind.total, labels=kind.labels, kind=kind.name)


def _there(kind: NodeKind, grid: Grid) -> int:
    """How many nodes of ``kind`` take work."""
    return sum(node.kind == kind.name for node in grid.nodes)


def _trouble(kinds: Iterable[NodeKind], now: float) -> str:
    """Why no node is started, if it is because launches failed."""
    held = [kind for kind in kinds if now < kind.not_before and kind.trouble]
    return "".join(
        f"; no node of kind {kind.name} for {kind.not_before - now:.0f} s: {kind.trouble}" for kind in held[:1]
    )
