"""The ranks of a replica whose stages may be on several nodes: a Ray actor each, in the bundle of its stage.

Ray reserves the bundles with the replica, starts the ranks and ends them; what they compute and send is between them
and the engine (:mod:`llmos.infer.ranks`). The replica starts them, not the engine's process, which would have to become
a part of Ray's cluster for that: they are the replica's own actors, so Ray ends them with it, however it ends.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llmos.cores import keep_to, usable_cores
from llmos.errors import ClusterError
from llmos.infer.launch import Meeting, core_share, neighbours
from llmos.spec import Mesh, Resources

_log = logging.getLogger("llmos.infer")


class RankActor:
    """A process that becomes a rank."""

    def serve(self, meeting: Meeting, number: int, index: int, parts: int) -> None:
        """Be rank ``number``, the one at ``index`` of ``parts`` on this node, until the engine ends or loses it.

        The meeting comes with a call, whose arguments Ray sends here and nowhere else; those of a constructor it keeps.
        """
        os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded; who computes says how many it wants
        keep_to(core_share(usable_cores(), index, parts))
        from llmos.infer.rank import serve

        serve(meeting, number)


class RankProcess:
    """A rank's actor as a :class:`llmos.infer.launch.Process`."""

    def __init__(self, actor: Any, end: Any) -> None:
        self._actor, self._end = actor, end

    def poll(self) -> int | None:
        """See :class:`llmos.infer.launch.Process`: 0, or 1 after an error, which is in the log then."""
        try:
            return self.wait(0)
        except GetTimeoutError:
            return None

    def kill(self) -> None:
        """See :class:`llmos.infer.launch.Process`."""
        ray.kill(self._actor, no_restart=True)

    def wait(self, timeout: float | None = None) -> int:
        """See :class:`llmos.infer.launch.Process`. Raises GetTimeoutError."""
        try:
            ray.get(self._end, timeout=timeout)
        except GetTimeoutError:
            raise
        except RayError as error:
            _log.error("a rank has ended: %s", error)
            return 1
        return 0


class RayGang:
    """Starts the ranks of the replica that this process is: see :class:`llmos.infer.launch.Gang`.

    Bundle ``i`` of the replica's placement group is for the ``mesh.tp`` ranks of stage ``i``, each with ``resources``.
    """

    def __init__(self, mesh: Mesh, resources: Resources) -> None:
        group = ray.util.get_current_placement_group()
        if group is None:
            raise ClusterError("the replica has no placement group for its ranks", hint="deploy the service again")
        found = ray.util.placement_group_table(group)["bundles_to_node_id"]
        self._group = group
        self._nodes = [found[stage] for stage in range(mesh.pp) for _ in range(mesh.tp)]
        self._tp, self._resources = mesh.tp, resources
        alone = set(self._nodes) == {ray.get_runtime_context().get_node_id()}
        self.host = "127.0.0.1" if alone else ray.util.get_node_ip_address()

    def launch(self, meeting: Meeting) -> Sequence[RankProcess]:
        """See :class:`llmos.infer.launch.Gang`."""
        places = neighbours(self._nodes)
        return [self._start(meeting, number, *places[number]) for number in range(meeting.ranks)]

    def _start(self, meeting: Meeting, number: int, index: int, parts: int) -> RankProcess:
        wanted = self._resources
        actor: Any = ray.remote(RankActor).options(
            num_cpus=wanted.cpus,
            num_gpus=wanted.gpus,
            memory=wanted.memory,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, number // self._tp),
        )
        handle = actor.remote()
        return RankProcess(handle, handle.serve.remote(meeting, number, index, parts))
