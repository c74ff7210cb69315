"""The cluster protocol over Ray: the one place where ``plan``'s values meet a real cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import ray
from ray.exceptions import RayError

from llmos.control import attempt
from llmos.control.ray import attempts, nodes, prestart, services
from llmos.control.standbys import MOST, Standbys
from llmos.core.types import (
    Action,
    Attempt,
    AttemptPhase,
    Job,
    Resources,
    Service,
    ServiceStatus,
    Snapshot,
    Verb,
)
from llmos.errors import ClusterError
from llmos.files import read_json
from llmos.layout import Layout
from llmos.spec import Service as ServiceSpec


class RayCluster:
    """Observes and changes the Ray cluster this process is connected to.

    ``service_spec`` gives what replicas of a unit, a revision of a service, run: its model pinned to one version.
    At most ``standbys`` processes are ready on each node for what starts there.
    """

    def __init__(self, layout: Layout, service_spec: Callable[[str], ServiceSpec], standbys: int = MOST) -> None:
        self._layout = layout
        self._service_spec = service_spec
        self._standbys = Standbys(prestart.Prestarter(layout).ask, ray.get_runtime_context().get_node_id(), standbys)
        self._session = ray.get_runtime_context().get_session_name()
        self._suspects: set[str] = set()  # nodes that an attempt has failed on and that do not answer

    def observe(self, jobs: Sequence[Job], services_wanted: Sequence[Service]) -> Snapshot:
        """The cluster now; see :class:`llmos.control.cluster.Cluster`."""
        try:
            seen = self._attempts(jobs)
            deployed = services.observe()
            ours = _held(jobs, seen, services_wanted, deployed)
            self._suspects = nodes.unreachable(self._suspects | _failed_on(jobs, seen))
            there = tuple(node for node in nodes.observe(ours) if node.id not in self._suspects)
            now = time.time()
            self._standbys.look(now, there)
            return Snapshot(now, there, seen, deployed)
        except RayError as error:
            raise ClusterError(f"the Ray cluster cannot be observed: {error}") from error

    def apply(self, action: Action, subject: Job | Service | None) -> None:
        """Carry out ``action``; see :class:`llmos.control.cluster.Cluster`."""
        try:
            self._apply(action, subject)
        except RayError as error:
            raise ClusterError(f"Ray could not {action.verb} {action.id}: {error}") from error

    def _apply(self, action: Action, subject: Job | Service | None) -> None:
        match action.verb:
            case Verb.START:
                plain = not (read_json(self._layout.job(action.id).spec) or {}).get("env")
                attempts.start(self._layout, action.id, action.attempt, action.nodes)
                self._standbys.started(time.time(), action.nodes, plain)
            case Verb.STOP if action.force:
                attempts.kill(action.id, action.attempt)
            case Verb.STOP:
                attempt.ask_to_stop(self._layout.job(action.id).attempt(action.attempt))
            case Verb.DEPLOY if isinstance(subject, Service):
                spec = self._service_spec(action.id)
                services.deploy(self._layout, action.id, spec, subject.digest, action.replicas)
            case Verb.REMOVE:
                services.remove(action.id)

    def _attempts(self, jobs: Iterable[Job]) -> dict[str, Attempt]:
        wanted = {(job.id, job.attempt) for job in jobs if job.attempt}
        alive = set(attempts.alive())
        seen: dict[str, Attempt] = {}
        for job, number in sorted(wanted | alive):
            dirs = self._layout.job(job).attempt(number)
            found = attempt.look(job, number, dirs, alive=(job, number) in alive, session=self._session)
            if found.alive or (found.phase is not AttemptPhase.ABSENT and (job, number) in wanted):
                seen[job] = found
        return seen


def _failed_on(jobs: Iterable[Job], seen: Mapping[str, Attempt]) -> set[str]:
    """The nodes of open attempts that failed or were lost."""
    bad = (AttemptPhase.FAILED, AttemptPhase.LOST)
    return {node for job in jobs if (found := seen.get(job.id)) and found.phase in bad for node in job.placement}


def _held(
    jobs: Iterable[Job],
    seen: Mapping[str, Attempt],
    wanted: Iterable[Service],
    deployed: Mapping[str, ServiceStatus],
) -> dict[str, Resources]:
    """What llmos's own work holds, by node id. A starting attempt counts, although its workers are still coming."""
    held: dict[str, Resources] = {}

    def hold(bundles: Iterable[Resources], where: Iterable[str]) -> None:
        for bundle, node in zip(bundles, where, strict=False):
            held[node] = held.get(node, Resources()) + bundle

    for job in jobs:
        if (found := seen.get(job.id)) and found.alive and found.number == job.attempt:
            hold(job.gang_on(job.placement).bundles, job.placement)
    for service in wanted:
        if status := deployed.get(service.id):
            hold(service.gang.bundles * (len(status.nodes) // len(service.gang.bundles)), status.nodes)
    return held
