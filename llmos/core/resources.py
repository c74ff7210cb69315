"""Amounts of resources, the nodes that have them and the gangs that need them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ROUNDING = 1e-6
"""Sums of fractions such as ten times 0.1 may miss by less than this; Ray itself counts in units of 1e-4."""


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of each kind of resource. ``custom`` holds Ray custom resources as sorted (name, amount) pairs."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_bytes: int = 0
    custom: tuple[tuple[str, float], ...] = ()

    def __add__(self, other: Resources) -> Resources:
        return self._combine(other, 1)

    def __sub__(self, other: Resources) -> Resources:
        return self._combine(other, -1)

    def fits_in(self, free: Resources) -> bool:
        """Whether ``free`` holds at least this much of everything."""
        if (
            self.cpus > free.cpus + ROUNDING
            or self.gpus > free.gpus + ROUNDING
            or self.memory_bytes > free.memory_bytes
        ):
            return False
        available = dict(free.custom)
        return all(amount <= available.get(name, 0.0) + ROUNDING for name, amount in self.custom)

    def _combine(self, other: Resources, sign: int) -> Resources:
        custom = self.custom
        if other.custom:
            mine, theirs = dict(self.custom), dict(other.custom)
            custom = tuple(
                (k, mine.get(k, 0.0) + sign * theirs.get(k, 0.0)) for k in sorted(mine.keys() | theirs.keys())
            )
        return Resources(
            self.cpus + sign * other.cpus,
            self.gpus + sign * other.gpus,
            self.memory_bytes + sign * other.memory_bytes,
            custom,
        )


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster. ``foreign`` is what work that llmos did not start holds there.

    ``labels`` say what it is and where: its kind of accelerator, rack, NVLink domain. ``kind`` names its
    :class:`NodeKind`, if the autoscaler started it. A node that is ``draining`` takes no work and loses what it has.
    """

    id: str
    total: Resources
    foreign: Resources = Resources()
    labels: tuple[tuple[str, str], ...] = ()
    draining: bool = False
    kind: str = ""


class Strategy(StrEnum):
    """How a gang lies on nodes: on few, on as many as there are, or all on one."""

    PACK = "pack"
    SPREAD = "spread"
    STRICT_PACK = "strict-pack"


@dataclass(frozen=True, slots=True)
class Gang:
    """Bundles that are placed all or none. Bundle ``i`` is rank ``i``'s share of one node.

    Every ``together`` consecutive bundles share a node: ranks that talk within each layer. ``topology`` names a label
    (rack, NVLink domain) that all nodes of the gang have with one value. ``labels`` are those that each of its nodes
    must have, as (name, value) pairs; ``A|B`` is either of two values.
    """

    bundles: tuple[Resources, ...]
    together: int = 1
    strategy: Strategy = Strategy.PACK
    topology: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
