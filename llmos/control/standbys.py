"""How many processes stand by on each node with torch loaded, so that what starts there begins at once.

A node gets one for each rank that it has room for, whether that room is free or not: a job that is resized, moved or
preempted starts anew in room that was taken a moment ago. They are started when nothing else has for a while, for
loading is work, too. Ray hands them out; those that nobody wants end by themselves (``control/ray/standby.py``). What
is known of them here is what was asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from llmos.core.types import Node
from llmos.standby import KEPT_S

MOST = 8
"""On one node, unless ``llmos up --standbys`` says otherwise: as many as such machines have GPUs."""
QUIET_S = 30.0
"""So long after the last start of an attempt the next ones are readied."""
BYTES, MEMORY_PART = 300 * 2**20, 0.1
"""What one holds of memory, about (torch for CPUs), and what all of a node may."""
FOR_ATTEMPTS = 2
"""On the head: one for the process of an attempt, one for Ray Train's own actor beside it."""

Ask = Callable[[str, bool, int], None]
"""Have a node (its id) start processes, for ranks or for attempts, so many; without waiting for an answer."""


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
                self._until[each].pop()

    def look(self, now: float, nodes: Sequence[Node]) -> None:
        """Ask for what is missing on ``nodes``, the living ones, once it has been quiet for long enough."""
        if self._quiet_since is None:
            self._quiet_since = now
        if not self._most or now - self._quiet_since < QUIET_S:
            return
        self._until = defaultdict(list, {each: _later(kept, now) for each, kept in self._until.items()})
        for (node, rank), count in self._wanted(nodes).items():
            if (missing := count - len(self._until[node, rank])) > 0:
                self._ask(node, rank, missing)
                self._until[node, rank] += [now + KEPT_S] * missing

    def _wanted(self, nodes: Sequence[Node]) -> dict[tuple[str, bool], int]:
        on_gpus = any(node.total.gpus for node in nodes)
        wanted = {(node.id, True): min(self._most, room(node, on_gpus)) for node in nodes if not node.draining}
        return wanted | ({(self._head, False): FOR_ATTEMPTS} if (self._head, True) in wanted else {})


def room(node: Node, on_gpus: bool) -> int:
    """How many ranks a node has room for: one per GPU, or per core in a cluster without; and for their standbys."""
    ranks = int(node.total.gpus if on_gpus else node.total.cpus)
    return min(ranks, int(node.total.memory_bytes * MEMORY_PART / BYTES))


def _later(times: Iterable[float], now: float) -> list[float]:
    return [time for time in times if time > now]
