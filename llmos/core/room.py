"""What is free, while one plan hands it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llmos.core import reasons
from llmos.core.placement import capacity, occupy, place, vacate
from llmos.core.types import Gang, Node, Resources, Service, ServiceStatus


@dataclass(frozen=True, slots=True)
class Memo:
    """Which gangs fit into ``room``, worked out in earlier ticks."""

    room: Mapping[str, Resources] = field(default_factory=dict)
    holds: Mapping[Gang, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """``who`` waits for room for one of ``gangs``, and goes before all that come later."""

    who: str
    gangs: tuple[Gang, ...]


class Room:
    """What is free on each node while one plan hands it out.

    ``total`` is what nodes have, ``unserved`` what they would have if only services ran, ``free`` what they have now.
    """

    def __init__(self, nodes: Iterable[Node], memo: object = None) -> None:
        nodes = [node for node in nodes if not node.draining]
        self.total = {node.id: node.total for node in nodes}
        self.unserved = dict(self.total)
        self._everything = reasons.added(self.total.values())
        self.free = capacity(nodes)
        self._memo = memo if isinstance(memo, Memo) else Memo()
        self._holds: dict[Gang, bool] = {}
        self._free_in_all: Resources | None = None

    def shut(self, nodes: Iterable[str]) -> None:
        """Give nothing out on ``nodes``: something there is about to end, and how much it holds is not known."""
        for node in nodes:
            self.free.pop(node, None)

    def seat(self, gang: Gang, nodes: Iterable[str]) -> None:
        """Give ``nodes`` to the bundles of ``gang``."""
        occupy(self.free, gang, nodes)
        self._free_in_all = None

    def leave(self, gang: Gang, nodes: Iterable[str]) -> None:
        """Take back what :meth:`seat` gave."""
        vacate(self.free, gang, nodes)
        self._free_in_all = None

    def reserve(self, services: Iterable[Service], seen: Mapping[str, ServiceStatus]) -> Claim | None:
        """Take what services hold and what their missing replicas need.

        Returns the claim of a service that has no room until jobs end, if there is one.
        """
        blocker: Claim | None = None
        for service in sorted(services, key=lambda service: (service.created_at, service.id)):
            status, size = seen.get(service.id), len(service.gang.bundles)
            placed = status.nodes if status and not status.removing and status.digest == service.digest else ()
            everything = Gang(service.gang.bundles * max(service.replicas, -(-len(placed) // size)))
            occupy(self.free, everything, placed)
            occupy(self.unserved, everything, placed[: service.replicas * size])  # surplus ones are about to go
            for _ in range(service.replicas - len(placed) // size):
                nodes, later = place(service.gang, self.free), place(service.gang, self.unserved)
                occupy(self.free, service.gang, nodes or ())
                occupy(self.unserved, service.gang, nodes or later or ())
                if later and not nodes:
                    blocker = blocker or Claim(f"service {service.id}", (service.gang,))
        return blocker

    def could_hold(self, gang: Gang) -> bool:
        """Whether ``gang`` would fit if all jobs ended. To be asked once services have reserved their share."""
        if gang not in self._holds:
            known = self._memo.holds.get(gang) if self._memo.room == self.unserved else None
            self._holds[gang] = place(gang, self.unserved) is not None if known is None else known
        return self._holds[gang]

    def memo(self) -> Memo:
        """What was worked out here, for the next plan."""
        return Memo(self.unserved, self._holds)

    def why_not(self, gang: Gang) -> str:
        """Why ``gang`` does not start now. To be asked once services have reserved their share."""
        if self.could_hold(gang):
            if self._free_in_all is None:  # the same for all jobs behind the first that waits
                self._free_in_all = reasons.added(self.free.values())
            return reasons.no_room(gang, self._free_in_all, self._everything, len(self.total))
        if place(gang, self.total):
            return reasons.beside_services(gang, self.unserved.values())
        return reasons.never(gang, self.total.values())
