"""An autoscaler in virtual time: it starts the nodes that the plan wants, and lets those go that it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from llmos.core.types import Node, NodeKind
from llmos.sim.cluster import SimCluster


class Scaler:
    """Of each of ``kinds``, which take so many seconds to start, the fewest are there from the beginning.

    A node above what is wanted that has held nothing for ``idle_s`` is drained first, and gone at the next look.
    """

    def __init__(self, cluster: SimCluster, kinds: Sequence[tuple[NodeKind, float]], idle_s: float) -> None:
        self._cluster = cluster
        self._kinds = kinds
        self._idle_s = idle_s
        self._coming: list[tuple[float, Node]] = []
        self._held_at: dict[str, float] = {}
        self._made: Counter[str] = Counter()
        for kind, _ in kinds:
            for _ in range(kind.fewest):
                self._join(self._node(kind))

    def next_arrival(self) -> float:
        """When the next node joins; infinity if none is coming."""
        return min((at for at, _ in self._coming), default=float("inf"))

    def follow(self, wanted: Mapping[str, int]) -> None:
        """Let those join that have started, and start or end others so that there come to be as many as ``wanted``."""
        now = self._cluster.now
        for at, node in [one for one in self._coming if one[0] <= now]:
            self._coming.remove((at, node))
            self._join(node)
        busy = {node for attempt in self._cluster.living() for node in attempt.nodes}
        for kind, launch_s in self._kinds:
            there = [node for node in self._cluster.nodes.values() if node.kind == kind.name]
            self._held_at.update({node.id: now for node in there if node.id in busy})
            coming = sum(node.kind == kind.name for _, node in self._coming)
            missing = wanted.get(kind.name, kind.fewest) - len(there) - coming
            self._coming += [(now + launch_s, self._node(kind)) for _ in range(missing)]
            self._release([node for node in there if node.id not in busy], -missing)

    def _release(self, idle: Sequence[Node], spare: int) -> None:
        """Drain at most ``spare`` of the nodes that hold nothing, and take those away that were drained before."""
        now = self._cluster.now
        long = [node for node in idle if now - self._held_at[node.id] >= self._idle_s]
        for node in sorted(long, key=lambda node: (not node.draining, node.id))[: max(spare, 0)]:
            if node.draining:
                del self._cluster.nodes[node.id]
            else:
                self._cluster.drain_node(node.id)

    def _node(self, kind: NodeKind) -> Node:
        self._made[kind.name] += 1
        return Node(f"{kind.name}-{self._made[kind.name] - 1}", kind.total, labels=kind.labels, kind=kind.name)

    def _join(self, node: Node) -> None:
        self._cluster.nodes[node.id] = node
        self._held_at[node.id] = self._cluster.now
