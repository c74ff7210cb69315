"""Drained nodes, as every tick sees them: what people have asked for is laid over what the cluster looks like."""

from __future__ import annotations

from dataclasses import replace

from llmos.control.store import Store
from llmos.core.types import Snapshot

FORGET_S = 600.0
"""A drained node that has not been seen for so long is gone for good: Ray gives a node that joins a new id."""


class Drained:
    """Marks the nodes of each snapshot that people have drained, and forgets those that are gone for good."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._missing: dict[str, float] = {}  # since when, by node

    def marked(self, snapshot: Snapshot) -> Snapshot:
        """``snapshot`` with ``draining`` set on those nodes."""
        drained = self._store.drains.all()
        if not drained:
            self._missing = {}
            return snapshot
        self._forget(drained.keys() - {node.id for node in snapshot.nodes}, snapshot.now)
        nodes = (replace(node, draining=True) if node.id in drained else node for node in snapshot.nodes)
        return replace(snapshot, nodes=tuple(nodes))

    def _forget(self, missing: set[str], now: float) -> None:
        self._missing = {node: self._missing.get(node, now) for node in missing}
        for node, since in self._missing.items():
            if now - since >= FORGET_S:
                self._store.drains.remove(node, now, "forgotten", f"not seen for {now - since:.0f} s: it is gone")
