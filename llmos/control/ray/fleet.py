"""The nodes that Ray's autoscaler starts and ends for us: which kinds there are, and how many of each should be there.

It keeps what it was asked for last, and starts nothing else that llmos's jobs need: a job starts on nodes that are
there. It ends a node only once that has been idle for the config's ``idle_timeout_minutes``, and drains it first: one
that has got work meanwhile refuses, and stays.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from llmos.control import node_kinds
from llmos.control.launches import Launches
from llmos.control.node_kinds import NodeKinds
from llmos.core.types import NodeKind
from llmos.errors import ClusterError

log = logging.getLogger("llmos.control")


class RayFleet:
    """Implements :class:`llmos.control.cluster.Fleet` for the cluster that this process is connected to.

    ``config`` is the autoscaler's, read anew when it has changed; ``monitor_log`` is what the autoscaler writes.
    """

    def __init__(self, config: Path, monitor_log: Path) -> None:
        self._config = config
        self._launches = Launches(monitor_log)
        self._known = NodeKinds()
        self._read_at = -1  # the file's time of change, 0 if it is not there

    def kinds(self) -> tuple[NodeKind, ...]:
        """The kinds of node; see :class:`llmos.control.cluster.Fleet`. A config that cannot be read changes nothing."""
        changed_at = self._config.stat().st_mtime_ns if self._config.exists() else 0
        if changed_at != self._read_at:
            self._read_at = changed_at
            try:
                self._known = node_kinds.read(self._config)
            except ClusterError as error:
                log.warning("%s", error)
        self._launches.look()
        return tuple(map(self._launches.held, self._known.kinds))

    def scale(self, wanted: Mapping[str, int]) -> None:
        """Have Ray keep ``wanted`` nodes; see :class:`llmos.control.cluster.Fleet`."""
        if self._known.kinds:
            ask_for(list(self._known.requests(wanted)))


def ask_for(nodes: Sequence[tuple[Mapping[str, float], Mapping[str, str]]]) -> None:
    """Have Ray's autoscaler keep a node with these resources and labels for each of ``nodes``, and no others that do
    nothing. Raises ClusterError."""
    try:
        request_resources(
            bundles=[dict(amounts) for amounts, _ in nodes],
            bundle_label_selectors=[dict(labels) for _, labels in nodes],
        )
    except (RayError, RuntimeError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ClusterError(f"Ray's autoscaler cannot be asked for nodes: {what}") from error
