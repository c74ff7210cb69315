"""What the control loop needs of a cluster. ``control/ray`` implements it over Ray, ``sim`` over numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from llmos.core.types import Action, Job, NodeKind, Service, Snapshot


class Cluster(Protocol):
    """A cluster that can be looked at and acted on. Neither method may wait for work to finish."""

    def observe(self, jobs: Sequence[Job], services: Sequence[Service]) -> Snapshot:
        """The cluster now. Of each job: its open attempt, or another one of it that is still alive.

        Raises ClusterError when the cluster cannot be seen as a whole: half a snapshot would look like losses.
        """

    def apply(self, action: Action, subject: Job | Service | None) -> None:
        """Carry out ``action``; ``subject`` is the job or service it is about, None once that is gone from the store.

        Doing it twice is doing it once. Raises leaves of ``errors``: the loop records them and plans anew.
        """


class Fleet(Protocol):
    """Nodes that can be started and ended. Neither method waits for one."""

    def kinds(self) -> tuple[NodeKind, ...]:
        """What can be started, and what is known of launches that failed."""

    def scale(self, wanted: Mapping[str, int]) -> None:
        """Have so many nodes of each kind be there. Fewer than there are: those that do nothing are drained and end.

        Doing it twice is doing it once. Raises ClusterError.
        """
