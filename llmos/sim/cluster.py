"""A cluster that exists only as numbers: the simulator's side of what ``control/ray`` does with a real one.

Time moves only in :meth:`SimCluster.advance`. What an attempt does is told by a function, so a run is reproducible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType

from llmos.core.placement import capacity, occupy, place
from llmos.core.types import (
    Action,
    Attempt,
    AttemptPhase,
    Gang,
    Job,
    Node,
    Resources,
    Service,
    ServiceStatus,
    Snapshot,
    Verb,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt goes if nothing disturbs it: it ends in ``phase`` after ``run_s`` seconds of running."""

    run_s: float
    phase: AttemptPhase = AttemptPhase.SUCCEEDED
    error: str = ""
    retry: bool = True  # whether another attempt could go better, if this one fails
    deaf: bool = False  # ignores a request to stop, as a hanging process does


@dataclass(slots=True)
class _Run:
    """An attempt that was launched: its gang, what is seen of it, when it begins running and when it ends."""

    gang: Gang
    seen: Attempt
    begins_at: float
    ends_at: float
    outcome: Outcome


class SimCluster:
    """Implements the cluster protocol over virtual time (seconds).

    ``outcome(job_id, attempt)`` says how each attempt goes. ``lost_launches`` is how many of the next STARTs vanish
    without trace, as when the control module dies between recording and starting.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        outcome: Callable[[str, int], Outcome],
        *,
        launch_s: float = 1.0,
        stop_s: float = 1.0,
    ) -> None:
        self.now = 0.0
        self.nodes = {node.id: node for node in nodes}
        self.lost_launches = 0
        self._outcome = outcome
        self._launch_s = launch_s
        self._stop_s = stop_s
        self._runs: dict[tuple[str, int], _Run] = {}
        self._services: dict[str, tuple[Gang, ServiceStatus]] = {}

    def observe(self, jobs: Iterable[Job], services: Iterable[Service]) -> Snapshot:
        """The cluster now. Of each job: its open attempt, or another one that is still alive."""
        open_attempts = {job.id: job.attempt for job in jobs}
        attempts = {
            id: run.seen
            for (id, number), run in self._runs.items()
            if run.seen.alive or open_attempts.get(id) == number
        }
        deployed = {id: status for id, (_, status) in self._services.items()}
        # read-only, so that a planner that changes what it is given is found out
        return Snapshot(self.now, tuple(self.nodes.values()), MappingProxyType(attempts), MappingProxyType(deployed))

    def apply(self, action: Action, subject: Job | Service | None = None) -> None:
        """Carry out ``action``; ``subject`` is the job or service it is about. Doing it twice is doing it once."""
        match action.verb, subject:
            case Verb.START, Job() if (action.id, action.attempt) not in self._runs:
                self._launch(action, subject.gang_on(action.nodes))
            case Verb.STOP, _:
                self._stop(self._runs[action.id, action.attempt], force=action.force)
            case Verb.DEPLOY, Service():
                self._deploy(replace(subject, replicas=action.replicas))
            case Verb.REMOVE, _:
                gang, status = self._services[action.id]
                self._services[action.id] = gang, replace(status, removing=True)

    def advance(self, to: float) -> None:
        """Let time pass until ``to``: attempts begin and end, replicas come up where there is room."""
        self.now = to
        for run in self._runs.values():
            if run.seen.alive and run.ends_at <= to:
                run.seen = replace(run.seen, phase=run.outcome.phase, error=run.outcome.error, retry=run.outcome.retry)
            elif run.seen.phase is AttemptPhase.STARTING and run.begins_at <= to:
                run.seen = replace(run.seen, phase=AttemptPhase.RUNNING)
        self._services = {id: entry for id, entry in self._services.items() if not entry[1].removing}
        for id in self._services:
            self._grow(id)

    def next_event(self) -> float:
        """When something happens next by itself; infinity if nothing does."""
        alive = [run for run in self._runs.values() if run.seen.alive]
        return min([t for run in alive for t in (run.begins_at, run.ends_at) if t > self.now], default=float("inf"))

    def fail_node(self, id: str) -> None:
        """The machine is gone, and with it every attempt and replica that had a bundle there."""
        self.nodes.pop(id)
        for run in self._runs.values():
            if run.seen.alive and id in run.seen.nodes:
                run.seen = replace(run.seen, phase=AttemptPhase.LOST, error=f"node {id} is gone")
        for name, (gang, status) in self._services.items():
            self._services[name] = gang, _with(status, [r for r in _replicas(gang, status) if id not in r])

    def drain_node(self, id: str) -> None:
        """The machine is about to go: it takes no more work."""
        self.nodes[id] = replace(self.nodes[id], draining=True)

    def living(self) -> list[Attempt]:
        """Every attempt that has a process."""
        return [run.seen for run in self._runs.values() if run.seen.alive]

    def free(self) -> dict[str, Resources]:
        """What is left on each node that takes work. Negative when something was started where it does not fit."""
        free = capacity(self.nodes.values())
        for run in self._runs.values():
            if run.seen.alive:
                occupy(free, run.gang, run.seen.nodes)
        for gang, status in self._services.values():
            for nodes in _replicas(gang, status):
                occupy(free, gang, nodes)
        return free

    def _launch(self, action: Action, gang: Gang) -> None:
        if self.lost_launches:
            self.lost_launches -= 1
            return
        outcome = self._outcome(action.id, action.attempt)
        begins_at = self.now + self._launch_s
        gone = any(node not in self.nodes for node in action.nodes)
        phase = AttemptPhase.LOST if gone else AttemptPhase.STARTING
        seen = Attempt(action.id, action.attempt, phase, nodes=action.nodes)
        self._runs[action.id, action.attempt] = _Run(gang, seen, begins_at, begins_at + outcome.run_s, outcome)

    def _stop(self, run: _Run, *, force: bool) -> None:
        if force:
            run.seen = replace(run.seen, phase=AttemptPhase.LOST, error="killed")
        elif run.seen.stopping_since is None:
            run.seen = replace(run.seen, stopping_since=self.now)
            if not run.outcome.deaf and run.ends_at > self.now + self._stop_s:
                run.outcome = replace(run.outcome, phase=AttemptPhase.YIELDED, error="")
                run.ends_at = self.now + self._stop_s

    def _deploy(self, service: Service) -> None:
        _, old = self._services.get(service.id, (None, None))
        kept = old.nodes[: service.replicas * len(service.gang.bundles)] if old and old.digest == service.digest else ()
        status = ServiceStatus(service.id, service.digest, service.replicas, 0)
        replicas = _replicas(service.gang, replace(status, nodes=kept))
        self._services[service.id] = service.gang, _with(status, replicas)

    def _grow(self, id: str) -> None:
        gang, status = self._services[id]
        replicas = _replicas(gang, status)
        if len(replicas) < status.target and (nodes := place(gang, self.free())):
            self._services[id] = gang, _with(status, [*replicas, nodes])


def _replicas(gang: Gang, status: ServiceStatus) -> list[tuple[str, ...]]:
    """The nodes of each replica."""
    size = len(gang.bundles)
    return [status.nodes[i : i + size] for i in range(0, len(status.nodes), size)]


def _with(status: ServiceStatus, replicas: list[tuple[str, ...]]) -> ServiceStatus:
    return replace(status, ready=len(replicas), nodes=tuple(node for nodes in replicas for node in nodes))
