"""The cluster's machines, and how much of each is held by work that llmos did not start."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray._private import state as ray_state

from llmos.core.types import Node, Resources

REACH_TIMEOUT_S = 1.0
_KIND = "ray.io/node-group"
"""The label that Ray gives a node that its autoscaler has started: the name of its kind."""
_KNOWN = ("CPU", "GPU", "memory", "object_store_memory")


def observe(ours: Mapping[str, Resources]) -> tuple[Node, ...]:
    """The living nodes. ``ours`` is what llmos's own work holds on each (by node id): the rest in use is foreign."""
    free = ray_state.available_resources_per_node()  # the only call that tells nodes apart; a GCS read
    draining = ray_state.state.get_draining_nodes()
    nodes = []
    for node in ray.nodes():
        id, total = node["NodeID"], node["Resources"]
        if not node["Alive"] or id not in free:
            continue
        held = resources(total) - resources(free[id])
        foreign = _at_least_nothing(held - ours.get(id, Resources()))
        labels = node.get("Labels", {})
        kind = labels.get(_KIND, "")
        nodes.append(Node(id, resources(total), foreign, tuple(sorted(labels.items())), id in draining, kind))
    return tuple(sorted(nodes, key=lambda node: node.id))


def unreachable(ids: Iterable[str]) -> set[str]:
    """Which of these living nodes do not answer. Ray itself takes a while to find out."""
    suspects = set(ids)
    where = {n["NodeID"]: (n["NodeManagerAddress"], n["NodeManagerPort"]) for n in ray.nodes() if n["Alive"]}
    return {id for id in suspects & where.keys() if not _answers(where[id])}


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=REACH_TIMEOUT_S).close()
        return True
    except OSError:
        return False


def resources(amounts: Mapping[str, Any]) -> Resources:
    """Ray's resource mapping as a value. Markers that Ray keeps per node are left out."""
    custom = tuple(
        sorted((name, float(v)) for name, v in amounts.items() if name not in _KNOWN and not name.startswith("node:"))
    )
    return Resources(float(amounts.get("CPU", 0)), float(amounts.get("GPU", 0)), int(amounts.get("memory", 0)), custom)


def _at_least_nothing(held: Resources) -> Resources:
    custom = tuple((name, max(0.0, amount)) for name, amount in held.custom)
    return Resources(max(0.0, held.cpus), max(0.0, held.gpus), max(0, held.memory_bytes), custom)
