"""Equal nodes with as many GPUs each, for replays of many jobs: who fits, and where."""

from __future__ import annotations

from collections.abc import Iterable

Placement = tuple[tuple[int, int], ...]
"""(node, GPUs there), one pair per node."""


class Pool:
    """The free GPUs of ``nodes`` nodes with ``per_node`` each.

    A job of at most ``per_node`` GPUs gets them on one node, the fullest that holds it; a larger one gets whole nodes,
    and what is left over of it on one more.
    """

    def __init__(self, nodes: int, per_node: int) -> None:
        self.per_node = per_node
        self.total = nodes * per_node
        self.free = [per_node] * nodes
        self.idle = self.total
        # nodes by what is free of them; a dict is a set that keeps its order, so that a replay can be repeated
        self._with: list[dict[int, None]] = [{} for _ in range(per_node + 1)]
        self._with[per_node] = dict.fromkeys(range(nodes))

    def fits(self, gpus: int) -> bool:
        """Whether a job on so many GPUs could start now."""
        if gpus > self.idle:
            return False
        whole, rest = divmod(gpus, self.per_node)
        if not whole:
            return any(self._with[rest:])
        return len(self._with[-1]) > whole or (
            len(self._with[-1]) == whole and (not rest or any(self._with[rest : self.per_node]))
        )

    def place(self, gpus: int) -> Placement | None:
        """Take ``gpus`` GPUs, if they are there."""
        if not self.fits(gpus):
            return None
        whole, rest = divmod(gpus, self.per_node)
        placement = [(node, self.per_node) for node in list(self._with[-1])[:whole]]
        for node, taken in placement:
            self._set(node, self.free[node] - taken)
        if rest:
            node = next(node for nodes in self._with[rest:] for node in nodes)
            placement.append((node, rest))
            self._set(node, self.free[node] - rest)
        return tuple(placement)

    def take(self, placement: Iterable[tuple[int, int]]) -> None:
        """Take these GPUs, which must be free."""
        for node, gpus in placement:
            assert self.free[node] >= gpus, f"node {node} has {self.free[node]} free, not {gpus}"
            self._set(node, self.free[node] - gpus)

    def give_back(self, placement: Iterable[tuple[int, int]]) -> None:
        """The opposite of :meth:`take`."""
        for node, gpus in placement:
            self._set(node, self.free[node] + gpus)

    def _set(self, node: int, free: int) -> None:
        before = self.free[node]
        del self._with[before][node]
        self._with[free][node] = None
        self.free[node] = free
        self.idle += free - before
