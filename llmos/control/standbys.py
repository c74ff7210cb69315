"""How many processes stand by on each node with their libraries loaded, so that what starts there begins at once.

A node gets one for each rank that it has room for, whether that room is free or not: a job that is resized, moved or
preempted starts anew in room that was taken a moment ago. They are started when nothing else has for a while, for
loading is work, too. Ray hands them out and ends those that nobody wanted; what is known of them here is what was
asked for.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable

from llmos.core.types import Node
from llmos.errors import ClusterError

MOST = 8
"""On one node, unless ``llmos up --standbys`` says otherwise: as many as such machines have GPUs."""
QUIET_S = 30.0
"""So long after the last start of an attempt the next ones are readied."""
KEPT_S = 1800
"""So long they are kept, and then replaced: then what is known here of them is true again, whatever became of them."""
BYTES, MEMORY_PART = 300 * 2**20, 0.1
"""What one holds of memory, about, and what all of a node may."""
FOR_ATTEMPTS = 2
"""On the head: one for the process of an attempt, one for Ray Train's own actor beside it."""

Ask = Callable[[str, bool, int, int], None]
"""Have a node (its id) start processes, for ranks or for attempts, so many, and keep them for so many seconds. Raises
ClusterError."""

log = logging.getLogger("llmos.control")


class Standbys:
    """Keeps at most ``most`` processes standing by on each node, two more on ``head``, by ``ask``. 0: none at all."""

    def __init__(self, ask: Ask, head: str, most: int = MOST) -> None:
        self._ask, self._head, self._most = ask, head, most
        self._quiet_since: float | None = None
        self._until: dict[tuple[str, bool], list[float]] = defaultdict(list)  # of each, by node and whether for a rank

    def started(self, now: float, nodes: Iterable[str], plain: bool) -> None:
        """An attempt has started on ``nodes``, one per rank. ``plain``: its ranks have no environment of their own, and
        so have taken what stood by."""
        self._quiet_since = now
        taken = [(node, True) for node in nodes] if plain else []
        for each in [*taken, *[(self._head, False)] * FOR_ATTEMPTS]:
            if self._until[each]:
                self._until[each].pop(0)

    def look(self, now: float, nodes: Iterable[Node]) -> None:
        """Ask for what is missing on ``nodes``, the living ones, once it has been quiet for long enough."""
        if self._quiet_since is None:
            self._quiet_since = now
        if not self._most or now - self._quiet_since < QUIET_S:
            return
        wanted = {(node.id, True): min(self._most, room(node)) for node in nodes if not node.draining}
        wanted |= {(self._head, False): FOR_ATTEMPTS} if (self._head, True) in wanted else {}
        self._until = defaultdict(list, {each: self._kept(each, now) for each in wanted})
        for (node, rank), count in wanted.items():
            if missing := count - len(self._until[node, rank]):
                self._start(now, node, rank, missing)

    def _kept(self, each: tuple[str, bool], now: float) -> list[float]:
        return [until for until in self._until[each] if until > now]

    def _start(self, now: float, node: str, rank: bool, count: int) -> None:
        """Ask for ``count`` more. A node that cannot be asked counts as one that was, and is asked again next time."""
        try:
            self._ask(node, rank, count, KEPT_S)
        except ClusterError as error:
            log.warning("%s", error)
        self._until[node, rank] += [now + KEPT_S] * count


def room(node: Node) -> int:
    """How many ranks a node has room for: one per GPU, or per core where there are none; and for their standbys."""
    ranks = int(node.total.gpus or node.total.cpus)
    return min(ranks, int(node.total.memory_bytes * MEMORY_PART / BYTES))
