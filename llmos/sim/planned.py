"""The scheduler itself as a policy of the twin: ``core.plan`` is asked, and what it says is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf

from llmos.core.lifecycle import record
from llmos.core.plan import plan as core_plan
from llmos.core.types import (
    Action,
    Attempt,
    AttemptPhase,
    Desired,
    Gang,
    Job,
    Node,
    Plan,
    Resources,
    Snapshot,
    Verb,
)
from llmos.sim.fleet import Fleet
from llmos.sim.job_replay import RESTART_S, Run, World
from llmos.sim.pool import Pool

Planner = Callable[[Desired, Snapshot, object], Plan]
TICK_S = 300.0
"""Seconds between two plans at least: four months are 34,560 of these."""
QUIET_S = 3600.0
"""When nothing has happened, but somebody waits."""
PATIENT_S = 300.0
"""The same where services lend room: elastic jobs may have come to be patient enough to grow on it."""
TRIED = 64
"""Where services come and go there are many plans; so many of the jobs that wait are looked at in each."""
PASSES = 4
"""Plans of one tick: what one ends, the next gives to others."""


class Planned:
    """Asks ``plan`` every ``tick_s`` seconds in which something happened, and starts and preempts as it says.

    An attempt that is told to yield does so at once, with a checkpoint; the replay charges what it costs to go on.
    """

    def __init__(
        self, pool: Pool, fleets: Sequence[Fleet] = (), *, plan: Planner = core_plan, tick_s: float = TICK_S
    ) -> None:
        nodes = range(len(pool.free))
        self._nodes = tuple(Node(f"node-{node}", Resources(gpus=pool.per_node)) for node in nodes)
        self._number = {node.id: number for number, node in enumerate(self._nodes)}
        self._gangs: dict[int, Gang] = {}
        self._per_node = pool.per_node
        self._fleets = {fleet.plans.name: fleet for fleet in fleets}
        self._plan = plan
        self._tick_s = tick_s
        self._runs: dict[str, Run] = {}
        self._jobs: dict[str, Job] = {}
        self._attempts: dict[str, Attempt] = {}
        self._memo: object = None
        self._due_s = self._patient_s = -inf
        self._changed = False

    def arrived(self, run: Run) -> None:
        """See Policy."""
        self._runs[run.job.id] = run
        smallest, *larger = self._gangs_of(run)
        self._jobs[run.job.id] = Job(
            run.job.id,
            smallest,
            run.job.submitted_s,
            larger=tuple(larger),
            tenant=run.job.tenant,
            estimate_s=run.median_s,
            estimate_high_s=run.high_s,
            resize_s=RESTART_S,
        )
        self._changed = True

    def ended(self, run: Run) -> None:
        """See Policy."""
        self._attempts[run.job.id] = replace(self._attempts[run.job.id], phase=AttemptPhase.SUCCEEDED)
        self._changed = True

    def decide(self, world: World) -> float:
        """See Policy."""
        if world.now < self._due_s:
            return self._due_s
        for fleet in self._fleets.values():
            fleet.serve(world.now)
            self._changed |= fleet.rescale(world.now) or fleet.target != len(fleet.replicas)
        if self._changed or (world.waiting and world.now >= self._patient_s):
            self._patient_s = world.now + (PATIENT_S if self._fleets else 0.0)
            for _ in range(PASSES):
                if not self._tick(world):
                    break
        self._changed = False
        self._due_s = world.now + self._tick_s
        if self._fleets:
            return self._due_s
        return world.now + QUIET_S if world.waiting else inf

    def _tick(self, world: World) -> bool:
        """Plan once and do as it says. Returns whether something ended that others may be waiting for."""
        services = tuple(fleet.desired() for fleet in self._fleets.values())
        desired = Desired(tuple(self._jobs.values()), services, tried=TRIED if services else Desired().tried)
        deployed = {name: status for name, fleet in self._fleets.items() if (status := fleet.status())}
        made = self._plan(desired, Snapshot(world.now, self._nodes, self._attempts, deployed), self._memo)
        self._memo = made.memo
        for action in made.actions:
            if action.verb is Verb.DEPLOY:
                self._fleets[action.id].target = action.replicas
            elif action.verb is Verb.STOP:
                self._apply(action, world)
        names = [node.id for node in self._nodes]
        missing = [fleet for fleet in self._fleets.values() if not fleet.deploy(world, names)]
        for action in made.actions:
            if action.verb in (Verb.START, Verb.CLOSE):
                self._apply(action, world)
        self._promise(made.estimates)
        return bool(missing) or any(action.verb in (Verb.STOP, Verb.DEPLOY) for action in made.actions)

    def _apply(self, action: Action, world: World) -> None:
        id, run = action.id, self._runs[action.id]
        match action.verb:
            case Verb.START:
                on = Counter[int]()
                for node, bundle in zip(action.nodes, self._jobs[id].gang_on(action.nodes).bundles, strict=True):
                    on[self._number[node]] += int(bundle.gpus)
                world.start(run, tuple(on.items()))
                self._attempts[id] = Attempt(id, action.attempt, AttemptPhase.RUNNING, nodes=action.nodes)
            case Verb.STOP:
                world.preempt(run)
                self._attempts[id] = replace(self._attempts[id], phase=AttemptPhase.YIELDED, stopping_since=world.now)
            case Verb.CLOSE:
                self._attempts.pop(id, None)
        if action.verb is Verb.CLOSE and action.phase and action.phase.final:
            del self._jobs[id], self._runs[id]
        else:
            self._jobs[id] = record(self._jobs[id], action, world.now)

    def _promise(self, estimates: Mapping[str, tuple[float, float]]) -> None:
        """The first estimate of a job's start is the one it is held to."""
        for id, (_, high_s) in estimates.items():
            run = self._runs.get(id)
            if run and run.promised_s is None and run.begun_s is None:
                run.promised_s = high_s

    def _gangs_of(self, run: Run) -> list[Gang]:
        """The gangs that ``run`` may have, smallest first; of an elastic one each is twice the last."""
        if not run.job.fewest:
            return [self._gang(run.job.gpus)]
        sizes = [run.job.fewest]
        while sizes[-1] < run.job.gpus:
            sizes.append(min(2 * sizes[-1], run.job.gpus))
        return [Gang((Resources(gpus=1),) * size) for size in sizes]

    def _gang(self, gpus: int) -> Gang:
        """Whole nodes, and one that has what is left over. The same gang for the same number, which plans profit by."""
        if gpus not in self._gangs:
            whole, rest = divmod(gpus, self._per_node)
            sizes = [self._per_node] * whole + ([rest] if rest or not whole else [])
            self._gangs[gpus] = Gang(tuple(Resources(gpus=size) for size in sizes))
        return self._gangs[gpus]
