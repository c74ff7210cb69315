"""Which node gets which bundle: gangs are placed all or none, packed as tightly as they fit.

Ranks are handed out node by node, so ranks that follow one another are neighbours: those of a tensor-parallel group
share a node (``Gang.together``), and pipeline stages that exchange activations are on the same or on adjacent ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping

from llmos.core.types import Gang, Node, Resources


def capacity(nodes: Iterable[Node]) -> dict[str, Resources]:
    """What llmos may use on each node that takes work, all of it free. Draining nodes take none."""
    return {node.id: node.total - node.foreign for node in nodes if not node.draining}


def occupy(free: MutableMapping[str, Resources], gang: Gang, nodes: Iterable[str]) -> None:
    """Take ``gang``'s bundles, in order, from ``free`` on ``nodes``. Nodes that are not in ``free`` are skipped."""
    for bundle, node in zip(gang.bundles, nodes, strict=False):
        if node in free:
            free[node] -= bundle


def vacate(free: MutableMapping[str, Resources], gang: Gang, nodes: Iterable[str]) -> None:
    """Give ``gang``'s bundles back, as if it had ended: the opposite of :func:`occupy`."""
    for bundle, node in zip(gang.bundles, nodes, strict=False):
        if node in free:
            free[node] += bundle


def fits(gang: Gang, nodes: tuple[str, ...], free: Mapping[str, Resources]) -> bool:
    """Whether all bundles fit on exactly ``nodes``, one node per bundle, at the same time."""
    if len(nodes) != len(gang.bundles) or not all(node in free for node in nodes):
        return False
    if any(len(set(nodes[i : i + gang.together])) > 1 for i in range(0, len(nodes), gang.together)):
        return False
    left = {node: free[node] for node in nodes}
    for bundle, node in zip(gang.bundles, nodes, strict=True):
        if not bundle.fits_in(left[node]):
            return False
        left[node] -= bundle
    return True


def place(gang: Gang, free: Mapping[str, Resources]) -> tuple[str, ...] | None:
    """A node for each bundle such that all fit together, or None.

    Best fit, largest bundle first: each goes to the node with the least room that holds it, so that large holes stay
    whole and neighbouring ranks share nodes. For equal bundles None means that no placement exists; for mixed ones it
    is the usual heuristic (vector bin packing is NP-hard), which may miss a placement but never returns a wrong one.
    """
    if gang.together > 1:
        placed = place(Gang(tuple(_together(gang))), free)
        return placed and tuple(node for node in placed for _ in range(gang.together))
    left = dict(free)
    chosen = [""] * len(gang.bundles)
    for bundle in sorted(dict.fromkeys(gang.bundles), key=_size, reverse=True):
        # a node that has taken one of equal bundles has the least room still: it is filled before the next is opened
        candidates = (node for node, room in left.items() if bundle.fits_in(room))
        queue = iter(sorted(candidates, key=lambda node: (_size(left[node]), node)))
        node = next(queue, None)
        for i in (i for i, other in enumerate(gang.bundles) if other == bundle):
            while node and not bundle.fits_in(left[node]):
                node = next(queue, None)
            if not node:
                return None
            chosen[i] = node
            left[node] -= bundle
    return tuple(chosen)


def _together(gang: Gang) -> Iterator[Resources]:
    """What each group of bundles that must share a node needs there."""
    for i in range(0, len(gang.bundles), gang.together):
        yield sum(gang.bundles[i : i + gang.together], Resources())


def _size(amount: Resources) -> tuple[float, ...]:
    """Orders amounts by what is scarcest: accelerators and custom resources before cores before memory."""
    return (amount.gpus, sum(value for _, value in amount.custom), amount.cpus, amount.memory_bytes)
