"""What is free, while one plan hands it out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmos.core import reasons
from llmos.core.free import GPU, SHUT, Columns, Grid, Matrix
from llmos.core.lending import Lending
from llmos.core.resources import Gang, Node, Resources
from llmos.core.shape import Shape, Shapes
from llmos.core.types import Order, Service, ServiceStatus


@dataclass(frozen=True, slots=True)
class Memo:
    """What a plan worked out about nodes and gangs: the next one uses what is still so."""

    nodes: tuple[Node, ...] = ()
    grid: Grid | None = None
    shapes: Shapes | None = None
    unserved: Matrix | None = None
    holds: Mapping[Shape, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """``who`` waits for room for one of ``gangs``, and goes before all that come later.

    Only jobs of a lower ``priority`` may be ended for it: none for a service, whose priority is None, unless the room
    for ``owned`` of its replicas is its own. ``tenant`` is whose job it is. If the ``order`` is shortest first, others
    may move for it.
    """

    who: str
    gangs: tuple[Gang, ...]
    priority: int | None = None
    tenant: str = ""
    order: Order = Order.FIFO
    owned: int = 0


class Room:
    """What is free on each node while one plan hands it out: matrices as in ``free``.

    ``grid.total`` is what nodes have, ``unserved`` what they would have if only services ran, ``free`` what they have
    now. Nodes of ``closed`` take nothing new, but keep what they have. ``lending`` is what services lend.
    """

    def __init__(self, nodes: tuple[Node, ...], memo: Memo, closed: Collection[str] = ()) -> None:
        self._nodes, self._closed = nodes, frozenset(closed)
        known = memo.grid if _same(nodes, memo.nodes) else None
        self.grid = known or Grid(nodes)
        self.shape = Shapes(self.grid, memo.shapes)
        self.unserved = self.grid.total.copy()
        self.free = self.grid.usable.copy()
        for node in self._closed:
            self._shut(node, self.unserved)
            self._shut(node, self.free)
        self.lending = Lending(self.grid, self.shape)
        self._memo = memo
        self._holds: dict[Shape, bool] = {}
        self._known_holds: Mapping[Shape, bool] | None = None
        self._texts: dict[Shape, str] = {}
        self._sums: tuple[Resources, Resources] | None = None

    def shut(self, nodes: Iterable[str]) -> None:
        """Give nothing out on ``nodes``: something there is about to end, and how much it holds is not known."""
        for node in nodes:
            self._shut(node, self.free)

    def seat(self, taken: Matrix) -> None:
        """Give out what is ``taken``, by kind and node."""
        self.free -= taken

    def names(self, columns: Columns) -> tuple[str, ...]:
        """The ids of the nodes at ``columns``."""
        return tuple(self.grid.ids[column] for column in columns)

    def reserve(self, services: Iterable[Service], seen: Mapping[str, ServiceStatus]) -> Claim | None:
        """Take what services hold and what their missing replicas need.

        Returns the claim of a service that has no room until jobs end, if there is one.
        """
        blocker: Claim | None = None
        for service in sorted(services, key=lambda service: (service.created_at, service.id)):
            status, size = seen.get(service.id), len(service.gang.bundles)
            placed = status.nodes if status and not status.removing and status.digest == service.digest else ()
            shape = self.shape(service.gang)
            everything = self.shape(Gang(service.gang.bundles * max(service.replicas, -(-len(placed) // size))))
            everything.held(self.grid.locate(placed)).take(self.free)
            kept = placed[: service.replicas * size]  # surplus ones are about to go
            everything.held(self.grid.locate(kept)).take(self.unserved)
            lacks = owned = 0
            for number in range(len(placed) // size, service.replicas):
                now, later = shape.place(self.free), shape.place(self.unserved)
                for columns, matrix in ((now, self.free), (later if now is None else now, self.unserved)):
                    if columns is not None:
                        shape.held(columns).take(matrix)
                if later is not None and now is None:
                    lacks, owned = lacks + 1, owned + (number < service.owned)
            if lacks:
                blocker = blocker or Claim(f"service {service.id}", (service.gang,), owned=owned)
        return blocker

    def could_hold(self, gang: Gang) -> bool:
        """Whether ``gang`` would fit if all jobs ended. To be asked once services have reserved their share."""
        shape = self.shape(gang)
        if shape not in self._holds:
            known = self._remembered().get(shape)
            self._holds[shape] = shape.fits_in(self.unserved) if known is None else known
        return self._holds[shape]

    def memo(self) -> Memo:
        """What was worked out here, for the next plan."""
        shapes = self.shape.forget()
        return Memo(self._nodes, self.grid, shapes, self.unserved, self._holds)

    def why_not(self, gang: Gang) -> str:
        """Why ``gang`` does not start now. To be asked once services have reserved their share, and all that starts
        has been seated."""
        shape = self.shape(gang)
        if shape not in self._texts:
            self._texts[shape] = self._why_not(shape)
        return self._texts[shape]

    def _why_not(self, shape: Shape) -> str:
        gang, grid = shape.gang, self.grid
        if not self.could_hold(gang):
            if self._closed and shape.fits_in(grid.total):
                return reasons.quarantined(gang, sorted(self._closed))
            if shape.fits_in(grid.total):
                return reasons.beside_services(gang, grid.resources(_sum(self.unserved)))
            return reasons.never(gang, len(grid.ids), grid.resources(grid.total.sum(axis=1)))
        columns = self._eligible(shape)
        if columns is None:
            available, everything = self._everywhere()
            return reasons.no_room(gang, available, everything, len(grid.ids))
        left, whole = _sum(self.free[:, columns]), grid.total[:, columns].sum(axis=1)
        return reasons.no_room(gang, grid.resources(left), grid.resources(whole), len(columns))

    def _everywhere(self) -> tuple[Resources, Resources]:
        """What is free on all nodes, and what they have: the same for most gangs."""
        if self._sums is None:
            total = self.grid.resources(self.grid.total.sum(axis=1))
            self._sums = self.grid.resources(_sum(self.free)), total
        return self._sums

    def _eligible(self, shape: Shape) -> Columns | None:
        """The nodes that are looked at to say why ``shape`` does not start: None for all."""
        if shape.allowed is None and shape.gang.topology is None:
            return None
        columns = np.arange(len(self.grid.ids)) if shape.allowed is None else np.flatnonzero(shape.allowed)
        if shape.gang.topology is None:
            return columns
        return self._roomiest(columns, self.grid.domains(shape.gang.topology)[0])

    def _roomiest(self, columns: Columns, codes: Columns) -> Columns:
        """Those of ``columns`` that are in the domain with most GPUs free (most CPUs, where it has no GPUs)."""
        inside = columns[codes[columns] >= 0]
        row = np.maximum(self.free[GPU if self.grid.total[GPU].any() else 0, inside], 0.0)
        best = int(np.argmax(np.bincount(codes[inside], weights=row)))
        return np.asarray(inside[codes[inside] == best])

    def _remembered(self) -> Mapping[Shape, bool]:
        """What was found out about gangs when services left as much as now."""
        if self._known_holds is None:
            before = self._memo.unserved if self._memo.grid is self.grid else None
            same = before is not None and np.array_equal(before, self.unserved)
            self._known_holds = self._memo.holds if same else {}
        return self._known_holds

    def _shut(self, node: str, matrix: Matrix) -> None:
        if node in self.grid.columns:
            matrix[:, self.grid.columns[node]] = SHUT


def _sum(matrix: Matrix) -> Matrix:
    """What all nodes that give something out have together, by kind."""
    return np.asarray(matrix[:, matrix[0] > SHUT / 2].sum(axis=1))


def _same(nodes: Sequence[Node], before: Sequence[Node]) -> bool:
    """Whether ``nodes`` are the very values of last time."""
    return nodes is before or (len(nodes) == len(before) and all(a is b for a, b in zip(nodes, before, strict=True)))
