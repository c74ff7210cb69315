"""A scenario, played: ``core.plan`` decides on a simulated cluster in virtual time, and all that happens is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from llmos.core.types import AttemptPhase, Desired, Job, Node, Plan, Service, Snapshot
from llmos.sim.chronicle import Chronicle
from llmos.sim.cluster import Outcome, SimCluster
from llmos.sim.progress import Progress
from llmos.sim.scaler import Scaler
from llmos.sim.scenario import BROKEN, LOST, Fault, Scenario
from llmos.sim.simulation import Simulation, Watcher

INTERVAL_S = 30.0
"""The loop looks at least so often."""
BREAKS_S = 60.0
"""So long after it has begun an attempt on a broken node fails."""


def play(scenario: Scenario, watch: Watcher | None = None) -> Chronicle:
    """What ``core.plan`` makes of ``scenario``. ``watch`` sees each of its plans, with what it was made for."""
    return _Play(scenario, watch).run()


class _Play:
    """What is due happens, :class:`Simulation` plans and carries out, time passes; and again."""

    def __init__(self, scenario: Scenario, watch: Watcher | None) -> None:
        self._scenario = scenario
        self._watch = watch
        gpus = {work.job.id: work.job.gang.bundles[0].gpus for work in scenario.works}
        gpus |= {service.id: service.gang.bundles[0].gpus for service, _ in scenario.services}
        self._chronicle = Chronicle(gpus)
        self._progress = {work.job.id: Progress(work, scenario.launch_s) for work in scenario.works}
        self._cluster = SimCluster(scenario.nodes, self._outcome, launch_s=scenario.launch_s, stop_s=scenario.stop_s)
        self._simulation = Simulation(self._cluster, watch=self._watched, order=scenario.order)
        self._simulation.tenants = {tenant.id: tenant for tenant in scenario.tenants}
        self._simulation.kinds = tuple(kind for kind, _ in scenario.kinds)
        self._scaler = Scaler(self._cluster, scenario.kinds, scenario.idle_s)
        self._broken: set[str] = set()

    def run(self) -> Chronicle:
        """Play it to its end."""
        due = sorted(self._events(), key=lambda event: event[0])
        told = 0
        while True:
            while due and due[0][0] <= self._cluster.now:
                due.pop(0)[1]()
            self._checkpoint()
            plan = self._simulation.tick()
            self._scaler.follow(plan.wanted_nodes)
            self._chronicle.seen(self._cluster, [action for _, action in self._simulation.history[told:]])
            told = len(self._simulation.history)
            if self._cluster.now >= self._scenario.until_s:
                self._chronicle.finished(self._cluster.now)
                return self._chronicle
            times = [self._simulation.next_time(INTERVAL_S), self._scaler.next_arrival(), self._scenario.until_s]
            times += [due[0][0]] if due else []
            self._cluster.advance(min(time for time in times if time > self._cluster.now))

    def _events(self) -> Iterator[tuple[float, Callable[[], object]]]:
        """What the scenario has happen, and when."""
        nodes = {node.id: node for node in self._scenario.nodes}
        for work in self._scenario.works:
            yield work.at_s, partial(self._submit, work.job)
        for service, wanted in self._scenario.services:
            for at_s, count in wanted:
                yield at_s, partial(self._deploy, replace(service, replicas=count, created_at=wanted[0][0]))
        for fault in self._scenario.faults:
            yield fault.at_s, partial(self._begin, fault)
            yield fault.until_s, partial(self._end, fault, nodes[fault.node])

    def _submit(self, job: Job) -> None:
        """The time that it is expected to run has a launch in it, and a resize costs an end and a launch."""
        launch_s = self._scenario.launch_s
        likely_s, high_s = (None if at is None else at + launch_s for at in (job.estimate_s, job.estimate_high_s))
        known = replace(job, estimate_s=likely_s, estimate_high_s=high_s, resize_s=launch_s + self._scenario.stop_s)
        self._simulation.submit(known)
        self._chronicle.submitted(job.id, job.tenant, self._cluster.now)

    def _deploy(self, service: Service) -> None:
        self._simulation.services[service.id] = service

    def _begin(self, fault: Fault) -> None:
        if fault.what == BROKEN:
            self._broken.add(fault.node)
        elif fault.node not in self._cluster.nodes:
            return  # lost already
        elif fault.what == LOST:
            self._cluster.fail_node(fault.node)
        else:
            self._cluster.drain_node(fault.node)

    def _end(self, fault: Fault, node: Node) -> None:
        self._broken.discard(fault.node)
        self._cluster.nodes[node.id] = node

    def _checkpoint(self) -> None:
        """What the plan is told of checkpoints. A job of which nothing is new stays the same value."""
        for id, job in self._simulation.jobs.items():
            at = self._progress[id].checkpointed_at(self._cluster.now)
            if at is not None and at != job.checkpointed_at:
                self._simulation.jobs[id] = replace(job, checkpointed_at=at)

    def _outcome(self, id: str, attempt: int) -> Outcome:
        """How an attempt goes that starts now, where its job was put."""
        progress, nodes = self._progress[id], self._simulation.jobs[id].placement
        run_s = progress.launched(len(nodes), self._cluster.now)
        if broken := self._broken.intersection(nodes):
            return Outcome(min(BREAKS_S, run_s), AttemptPhase.FAILED, error=f"a GPU of {min(broken)} fell off the bus")
        if progress.work.fails:
            return Outcome(run_s, AttemptPhase.FAILED, error="its data is bad", retry=False)
        return Outcome(run_s)

    def _watched(self, desired: Desired, snapshot: Snapshot, plan: Plan) -> None:
        for attempt in snapshot.attempts.values():
            if not attempt.alive:
                self._progress[attempt.job].ended(attempt.phase, attempt.stopping_since, snapshot.now)
        self._chronicle.planned(desired, snapshot, plan)
        if self._watch:
            self._watch(desired, snapshot, plan)
