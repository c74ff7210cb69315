"""The control loop: observe → plan → record → apply, once a second and whenever something was asked for.

What is decided is written down before it is done. So a crash leaves either a decision that is carried out by the next
tick, or none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from llmos.control import functions
from llmos.control.cluster import Cluster, Fleet
from llmos.control.drains import Drained
from llmos.control.journal import newest_metrics
from llmos.control.knowledge import Knowledge, blamed
from llmos.control.registry import Registry
from llmos.control.rollouts import Decided, Rollouts
from llmos.control.steady import steady
from llmos.control.store import Store
from llmos.control.translate import of_unit
from llmos.core.plan import plan
from llmos.core.standing import Standing
from llmos.core.types import Action, AttemptPhase, Desired, Job, JobPhase, Order, Plan, Service, Snapshot, Verb
from llmos.errors import ClusterError, LlmosError
from llmos.layout import Layout

INTERVAL_S = 1.0

log = logging.getLogger("llmos.control")


@dataclass(frozen=True)
class Sight:
    """What the last tick saw and decided: the cluster, the plan for it, why it could not look, if so, what was desired,
    what was decided about services, and all their revisions by unit."""

    snapshot: Snapshot = field(default_factory=lambda: Snapshot(0.0))
    plan: Plan = field(default_factory=Plan)
    error: str = "the cluster has not been looked at yet"
    desired: Desired = field(default_factory=Desired)
    services: Mapping[str, Decided] = field(default_factory=dict)
    units: Mapping[str, Service] = field(default_factory=dict)

    @cached_property
    def standing(self) -> Standing:
        """Who runs and who waits, worked out when somebody asks for it."""
        return Standing(self.desired, self.snapshot, self.plan)

    @cached_property
    def jobs(self) -> Mapping[str, Job]:
        """The unfinished jobs by id."""
        return {job.id: job for job in self.desired.jobs}


class Loop:
    """Drives ``cluster`` towards what ``store`` holds. One thread ticks; ``sight`` and ``nudge`` are for all."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        cluster: Cluster,
        layout: Layout,
        fleet: Fleet | None = None,
        order: Order = Order.FIFO,
    ) -> None:
        self.sight = Sight()
        self.knowledge = Knowledge(store, layout, order)
        self.rollouts = Rollouts(store.services)
        self._store = store
        self._registry = registry
        self._cluster = cluster
        self._fleet = fleet
        self._layout = layout
        self._drained = Drained(store)
        self._memo: object = None
        self._running: frozenset[str] = frozenset()  # jobs of which that is recorded: most ticks write nothing
        self._nudged = threading.Event()
        self._resting = False
        self._cleaned_at = float("-inf")

    def run(self, interval_s: float = INTERVAL_S) -> None:
        """Tick for ever. Whatever goes wrong in a tick is logged, and the next one tries again."""
        while True:
            self._nudged.clear()
            try:
                if not self._resting:
                    self.tick()
            except Exception as error:
                log.exception("a tick failed")
                self.sight = replace(self.sight, error=f"the control loop failed: {type(error).__name__}: {error}")
            self._nudged.wait(interval_s)

    def rest(self) -> None:
        """Plan no more after the tick that runs now, until :meth:`carry_on`."""
        self._resting = True
        self.sight = replace(self.sight, error="planning has stopped: `llmos down` has begun; `llmos up` goes on")
        self.knowledge.usage.save(self.sight.snapshot.now)

    def carry_on(self) -> None:
        """Plan again."""
        self._resting = False
        self.nudge()

    def nudge(self) -> None:
        """Tick soon."""
        self._nudged.set()

    def tick(self) -> None:
        """One turn. A cluster that cannot be seen is left alone: ``sight.error`` says so."""
        kinds = self._fleet.kinds() if self._fleet else ()
        desired = replace(self.knowledge.desired(self.sight.snapshot.now), kinds=kinds)
        try:
            snapshot = self._drained.marked(self._cluster.observe(desired.jobs, tuple(self.rollouts.known().values())))
            snapshot = steady(snapshot, self.sight.snapshot)
        except ClusterError as error:
            self.sight = replace(self.sight, error=str(error))
            return
        desired = replace(desired, services=self.rollouts.decide(snapshot, desired.jobs))
        decided = plan(desired, snapshot, self._memo)
        self._memo = decided.memo
        actions, results = self._conclude(decided.actions, desired.jobs, snapshot.now)
        running, guilty = _running(desired.jobs, snapshot), blamed(actions, snapshot)
        if actions or running - self._running:
            begun = sorted(running - self._running)
            self._store.record(actions, snapshot.now, running=begun, results=results, blamed=guilty)
        self._running = running
        self.sight = Sight(snapshot, decided, "", desired, self.rollouts.decided, self.rollouts.known())
        self._apply(actions, desired.services, snapshot.now)
        self._scale(decided.wanted_nodes)
        self.knowledge.note(actions, desired.jobs, snapshot, guilty)
        self.knowledge.promise(actions, decided.estimates, snapshot.now)
        self._clean(snapshot.now)

    def _clean(self, now: float) -> None:
        """Every so often: delete the functions that no unfinished job names."""
        if now - self._cleaned_at > functions.KEPT_S:
            self._cleaned_at = now
            functions.forget(self._layout, self._store.jobs.functions(), now)

    def _scale(self, wanted: Mapping[str, int]) -> None:
        """Ask for the nodes that are wanted, every time: whoever asks last is heard, and others may have asked."""
        if self._fleet:
            try:
                self._fleet.scale(wanted)
            except ClusterError as error:
                log.warning("%s", error)
                self.sight = replace(self.sight, error=str(error))

    def _conclude(
        self, actions: Iterable[Action], jobs: Iterable[Job], now: float
    ) -> tuple[list[Action], dict[str, dict[str, Any]]]:
        """The actions, and what each CLOSE adds to its job's record. The model of a job that succeeded is registered
        first. Where it is not whole, the job fails; where the trouble may pass, such as a full disk, its CLOSE is left
        to the next tick."""
        closed = {action.id for action in actions if action.verb is Verb.CLOSE}
        makers = self._store.jobs.makers(closed)
        subjects = {job.id: job for job in jobs if job.id in closed}
        final: list[Action] = []
        results: dict[str, dict[str, Any]] = {}
        for action in actions:
            if action.verb is Verb.CLOSE:
                job = subjects[action.id]
                result: dict[str, Any] = {"metrics": newest_metrics(self._layout.job(job.id), job.attempts)}
                if action.phase is JobPhase.QUEUED and job.larger:
                    result["measured"] = self.knowledge.progress.measured(job, now)
                if action.phase is JobPhase.SUCCEEDED and job.id in makers:
                    try:
                        action, result["model"] = self._register(action)
                    except (ClusterError, OSError) as error:
                        self._store.events.add(now, "job", action.id, "register_failed", str(error))
                        continue
                results[action.id] = result
            final.append(action)
        return final, results

    def _register(self, action: Action) -> tuple[Action, Any]:
        try:
            return action, self._registry.register(action.id)
        except ClusterError:
            raise
        except LlmosError as error:
            why = f"trained, but its model could not be registered: {error}"
            return replace(action, phase=JobPhase.FAILED, why=why), None

    def _apply(self, actions: Iterable[Action], services: Iterable[Service], now: float) -> None:
        """Carry out what was recorded. An action that fails is an event, and does not keep the others from theirs."""
        subjects: dict[tuple[bool, str], Job | Service] = {}
        if any(action.verb is not Verb.CLOSE for action in actions):
            subjects |= {(False, job.id): job for job in self._store.jobs.unfinished()}
            subjects |= {(True, service.id): service for service in services}
        for action in actions:
            about_service = action.verb in (Verb.DEPLOY, Verb.REMOVE)
            try:
                self._cluster.apply(action, subjects.get((about_service, action.id)))
            except Exception as error:
                expected = isinstance(error, LlmosError)
                log.warning("could not %s %s: %s", action.verb, action.id, error, exc_info=not expected)
                why = str(error) if expected else f"{type(error).__name__}: {error}"
                kind, subject = ("service", of_unit(action.id)[0]) if about_service else ("job", action.id)
                self._store.events.add(now, kind, subject, f"{action.verb}_failed", why)


def _running(jobs: Iterable[Job], snapshot: Snapshot) -> frozenset[str]:
    """The jobs whose open attempt runs."""
    return frozenset(
        job.id
        for job in jobs
        if job.attempt
        and (seen := snapshot.attempts.get(job.id))
        and (seen.number, seen.phase) == (job.attempt, AttemptPhase.RUNNING)
    )
