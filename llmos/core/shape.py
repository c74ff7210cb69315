"""What a gang needs, ready to be placed on a matrix of free resources, and the placement.

Best fit, largest bundle first, as in ``placement``: each goes to the node with the least room that holds it. A gang
that is spread takes one bundle per node of the emptiest nodes before it takes a second one anywhere. A gang with a
topology lies within one domain: the one in which the fewest of its bundles would fit, so that large holes stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmos.core import reasons
from llmos.core.free import GPU, Columns, Grid, Held, Mask, Matrix, size_order, tightest
from llmos.core.resources import ROUNDING, Gang, Resources, Strategy

_MANY = 1e9  # more than any node holds
_SLACK = 1e-9
"""A quotient of floats may miss a whole number by less than this."""


@dataclass(frozen=True, slots=True, eq=False)
class _Unit:
    """Equal parts that need ``amount`` (by kind) on one node each; ``positions`` are theirs in the gang."""

    amount: Matrix
    floor: Matrix  # what a node must have free at least, a column
    kinds: tuple[int, ...]  # those of which it needs some
    positions: Columns


class Shape:
    """A gang on a grid. Gangs that are equal share one shape, so it stands for them as a key.

    ``total`` is what the gang needs in all, by kind. ``known``: some node has each kind of resource it asks for.
    Where less than ``least`` is free on all nodes together, there is no room for it.
    ``exact``: a placement is found if there is one; of unlike bundles that is not sure.
    """

    def __init__(self, gang: Gang, grid: Grid) -> None:
        self.gang = gang
        self.grid = grid
        self.value = _value(gang)
        count = max(len(gang.bundles), 1)
        self._together = count if gang.strategy is Strategy.STRICT_PACK else max(gang.together, 1)
        vectors = {bundle: grid.vector(bundle) for bundle in dict.fromkeys(gang.bundles)}
        self.known = None not in vectors.values()
        width = len(grid.tolerance)
        self._bundles = (
            np.array([vectors[bundle] or [0.0] * width for bundle in gang.bundles], dtype=float).reshape(-1, width).T
        )
        self.total: list[float] = self._bundles.sum(axis=1).tolist()
        self.gpus = self.total[GPU]
        self._units = tuple(self._split()) if self.known else ()
        self.allowed = grid.mask(gang.labels)
        self.exact = len(self._units) < 2
        self.least = [value - ROUNDING * count for value in self.total]

    @cached_property
    def words(self) -> str:
        """The gang in words."""
        return reasons.gang_size(self.gang)

    def held(self, columns: Columns) -> Held:
        """What the bundles hold when they are on ``columns``, one each. Those at -1 are left out."""
        count = min(len(columns), self._bundles.shape[1])
        if count == 1 and columns[0] >= 0:
            return Held(columns[:1], self._bundles[:, :1], self.total if self._bundles.shape[1] == 1 else None)
        there = np.flatnonzero(columns[:count] >= 0)
        distinct, place = np.unique(columns[there], return_inverse=True)
        amounts = np.zeros((len(self._bundles), len(distinct)))
        for row, bundles in zip(amounts, self._bundles, strict=True):
            row[:] = np.bincount(place, weights=bundles[there], minlength=len(distinct))
        return Held(distinct, amounts)

    def place(self, free: Matrix, prefer: Matrix | None = None) -> Columns | None:
        """The column of each bundle such that all fit together, or None.

        ``prefer``: nodes that have most of it free come first, and best fit decides among none of them.
        """
        if not self.known:
            return None
        if self.gang.topology is None:
            return self._fill(free, self.allowed, prefer)
        for mask in self._domains(free):
            if (placed := self._fill(free, mask, prefer)) is not None:
                return placed
        return None

    def hosts(self, free: Matrix) -> Columns:
        """The nodes that hold its largest part."""
        return self._room(self._units[0], free, self.allowed)[0] if self._units else np.zeros(0, dtype=np.int64)

    def fits_in(self, free: Matrix) -> bool:
        """Whether there is room for it: as :meth:`place`, without the choice where that need not be made."""
        if not self.known or len(self._units) != 1 or self.gang.topology is not None:
            return self.place(free) is not None
        return bool(self._room(self._units[0], free, self.allowed)[1].sum() >= len(self._units[0].positions))

    def fits(self, columns: Columns, free: Matrix) -> bool:
        """Whether all bundles fit on exactly ``columns``, one each, at the same time."""
        if not self.known or len(columns) != self._bundles.shape[1] or (columns < 0).any():
            return False
        groups = [columns[i : i + self._together] for i in range(0, len(columns), self._together)]
        if any((group != group[0]).any() for group in groups):
            return False
        if self.allowed is not None and not self.allowed[columns].all():
            return False
        if self.gang.topology is not None:
            codes = self.grid.domains(self.gang.topology)[0][columns]
            if (codes < 0).any() or (codes != codes[0]).any():
                return False
        held = self.held(columns)
        return bool((held.amounts <= free[:, held.columns] + self.grid.tolerance[:, None]).all())

    def _split(self) -> Iterator[_Unit]:
        """The parts that are placed as one, the largest first: bundles, or groups of them that share a node."""
        step = self._together
        groups = [self._bundles[:, i : i + step].sum(axis=1) for i in range(0, self._bundles.shape[1], step)]
        alike: dict[tuple[float, ...], list[int]] = {}
        for i, amount in enumerate(groups):
            alike.setdefault(tuple(amount.tolist()), []).append(i)
        for values in sorted(alike, key=_size, reverse=True):
            amount = np.array(values)
            kinds = tuple(np.flatnonzero(amount > 0).tolist())
            yield _Unit(amount, (amount - self.grid.tolerance)[:, None], kinds, np.array(alike[values]))

    def _domains(self, free: Matrix) -> Iterator[Mask | None]:
        """The nodes among which to place: all that are allowed, or those of one domain after the other."""
        if self.gang.topology is None or not self._units:
            yield self.allowed
            return
        codes, values = self.grid.domains(self.gang.topology)
        unit = self._units[0]
        columns, counts = self._room(unit, free, self.allowed, most=_MANY)
        inside = codes[columns] >= 0
        sums = np.bincount(codes[columns[inside]], weights=counts[inside], minlength=len(values))
        for code in np.argsort(sums, kind="stable"):
            if sums[code] >= len(unit.positions):
                mask = codes == code
                yield mask if self.allowed is None else mask & self.allowed

    def _room(self, unit: _Unit, free: Matrix, mask: Mask | None, most: float | None = None) -> tuple[Columns, Matrix]:
        """The columns that hold at least one ``unit``, and how many each holds, at most ``most`` (all there are)."""
        columns = self._able(unit, free, mask)
        counts = np.full(len(columns), float(len(unit.positions)) if most is None else most)
        for kind in unit.kinds:
            room = (free[kind, columns] + self.grid.tolerance[kind]) / unit.amount[kind]
            np.minimum(counts, np.floor(room + _SLACK), out=counts)
        return columns, np.maximum(counts, 1.0)

    def _able(self, unit: _Unit, free: Matrix, mask: Mask | None) -> Columns:
        """The columns that hold at least one ``unit``."""
        ok = np.logical_and.reduce(free >= unit.floor)
        if mask is not None:
            ok &= mask
        return np.asarray(ok.nonzero()[0])

    def _fill(self, free: Matrix, mask: Mask | None, prefer: Matrix | None) -> Columns | None:
        if self._bundles.shape[1] == 1 and prefer is None and self._units:
            columns = self._able(self._units[0], free, mask)
            if not len(columns):
                return None
            spread = self.gang.strategy is Strategy.SPREAD
            return columns[size_order(free, columns)[-1:]] if spread else tightest(free, columns, self.grid)
        chosen = np.zeros(-(-self._bundles.shape[1] // self._together), dtype=np.int64)
        left = free if len(self._units) == 1 else free.copy()
        spread = self.gang.strategy is Strategy.SPREAD
        for unit in self._units:
            columns, counts = self._room(unit, left, mask)
            wanted = len(unit.positions)
            if counts.sum() < wanted:
                return None
            if spread:
                order = size_order(left, columns)[::-1]
                taken = _evenly(counts[order], wanted)
            else:
                order = size_order(left, columns) if prefer is None else size_order(prefer, columns)[::-1]
                before = np.cumsum(counts[order]) - counts[order]
                taken = np.clip(wanted - before, 0.0, counts[order])
            nodes = columns[order]
            chosen[unit.positions] = np.repeat(nodes, taken.astype(np.int64))
            if left is not free:
                left[:, nodes] -= unit.amount[:, None] * taken
        return np.repeat(chosen, self._together)[: self._bundles.shape[1]]


class Shapes:
    """The shape of each gang, worked out once for equal gangs, and looked up by identity once it is known.

    ``before`` are the shapes of an earlier plan on the same grid. Only those that are asked for again are kept.
    """

    def __init__(self, grid: Grid, before: Shapes | None = None) -> None:
        self.grid = grid
        self._old = before if before and before.grid is grid else None
        self._by_identity: dict[int, Shape] = {}
        self._gangs: dict[int, Gang] = {}  # keeps each gang alive, so that its identity stays its own
        self._by_value: dict[object, Shape] = {}

    def __call__(self, gang: Gang) -> Shape:
        """The shape of ``gang``."""
        key = id(gang)
        if shape := self._by_identity.get(key):
            return shape
        shape = self._known(gang)
        self._by_identity[key] = shape
        self._gangs[key] = gang
        return shape

    def forget(self) -> Shapes:
        """The same without what only an earlier plan needed."""
        self._old = None
        return self

    def _known(self, gang: Gang) -> Shape:
        old = self._old
        shape = old._by_identity.get(id(gang)) if old else None
        value = shape.value if shape else _value(gang)
        shape = self._by_value.get(value) or shape or (old and old._by_value.get(value)) or Shape(gang, self.grid)
        self._by_value[value] = shape
        return shape


def _value(gang: Gang) -> object:
    """Equal for equal gangs, and cheap to compare for gangs of many equal bundles."""
    first = gang.bundles[0] if gang.bundles else Resources()
    if gang.bundles.count(first) != len(gang.bundles):
        return gang
    return first, len(gang.bundles), gang.together, gang.strategy, gang.topology, gang.labels


def _size(amount: tuple[float, ...]) -> tuple[float, ...]:
    """Orders amounts by what is scarcest: accelerators and custom resources before cores before memory."""
    cpus, gpus, memory, *custom = amount
    return gpus, sum(custom), cpus, memory


def _evenly(counts: Matrix, wanted: int) -> Matrix:
    """How many of ``wanted`` each node takes so that none has two while another that could has none."""
    taken = np.zeros(len(counts))
    while (missing := wanted - taken.sum()) > 0:
        open_ = np.flatnonzero(taken < counts)
        taken[open_[: int(missing)]] += 1.0
    return taken
