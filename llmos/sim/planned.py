"""The scheduler itself as a policy of the twin: ``core.plan`` is asked, and what it says is done."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from math import inf

from llmos.core.lifecycle import record
from llmos.core.plan import plan as core_plan
from llmos.core.promises import Promises
from llmos.core.types import (
    Action,
    Attempt,
    AttemptPhase,
    Desired,
    Failure,
    Gang,
    Job,
    Node,
    Order,
    Plan,
    Resources,
    Snapshot,
    Verb,
)
from llmos.sim.fleet import Fleet
from llmos.sim.job_replay import RESTART_S, Run, World
from llmos.sim.pool import Pool

Planner = Callable[[Desired, Snapshot, object], Plan]
QUIET_S = 3600.0
"""When nothing has happened, but somebody waits."""
PATIENT_S = 300.0
"""The same where services lend room: elastic jobs may have come to be patient enough to grow on it."""
TRIED = 64
"""Where services come and go there are many plans; so many of the jobs that wait are looked at in each."""
ALL_TRIED = Desired().tried
PASSES = 4
"""Plans of one tick: what one ends, the next gives to others."""
RETRIES = 20
FORGOTTEN_S = 3600.0
"""So long the failures of attempts are told, for the quarantine of nodes."""
RESERVATIONS = 0
"""None is needed where free room comes together: nodes that are kept until they are empty lie idle."""


class Planned:
    """Asks ``plan`` whenever there is something to decide, and starts and preempts as it says.

    That is when a job has come, or one has ended and others wait; with ``fleets``, every ``tick_s`` seconds. An attempt
    that is told to yield does so at once, with a checkpoint; the replay charges what it costs to go on. All jobs are
    one tenant's: the policies that this one is compared with know no tenants either.
    """

    def __init__(
        self,
        pool: Pool,
        fleets: Sequence[Fleet] = (),
        *,
        plan: Planner = core_plan,
        tick_s: float = 0.0,
        order: Order = Order.SHORTEST,
    ) -> None:
        nodes = range(len(pool.free))
        self._nodes = tuple(Node(f"node-{node}", Resources(gpus=pool.per_node)) for node in nodes)
        self._up, self._down = self._nodes, set[int]()
        self._number = {node.id: number for number, node in enumerate(self._nodes)}
        self._gangs: dict[int, Gang] = {}
        self._per_node = pool.per_node
        self._fleets = {fleet.plans.name: fleet for fleet in fleets}
        self._plan = plan
        self._tick_s = tick_s
        self._order = order
        self._runs: dict[str, Run] = {}
        self._jobs: dict[str, Job] = {}
        self._attempts: dict[str, Attempt] = {}
        self._memo: object = None
        self._due_s = self._patient_s = -inf
        self._came = self._ended = self._elastic = False
        self._untold: set[str] = set()
        self._failures: deque[Failure] = deque()
        self._pauses: list[float] = []
        self.promises = Promises()

    def arrived(self, run: Run) -> None:
        """See Policy."""
        smallest, *larger = self._gangs_of(run)
        self._runs[run.job.id] = run
        self._jobs[run.job.id] = Job(
            run.job.id,
            smallest,
            run.job.submitted_s,
            larger=tuple(larger),
            estimate_s=run.median_s,
            estimate_high_s=run.high_s,
            retries=RETRIES,
            resize_s=RESTART_S,
        )
        self._untold.add(run.job.id)
        self._came = True
        self._elastic |= bool(larger)

    def ended(self, run: Run) -> None:
        """See Policy."""
        self._close(run, AttemptPhase.SUCCEEDED)
        self._ended = True

    def failed(self, run: Run) -> None:
        """See Policy. The plan says what follows."""
        self._close(run, AttemptPhase.FAILED)

    def _close(self, run: Run, phase: AttemptPhase) -> None:
        open_ = self._attempts[run.job.id]
        self._attempts[run.job.id] = Attempt(open_.job, open_.number, phase, nodes=open_.nodes)

    def lost(self, node: int, world: World) -> None:
        """See Policy."""
        for fleet in self._fleets.values():
            fleet.lose(node, world)

    def decide(self, world: World) -> float:
        """See Policy."""
        if world.now < self._due_s:
            return self._due_s
        news = self._came or (self._ended and (self._elastic or bool(self._fleets)))
        news = news or (world.waiting > 0 and world.now >= self._patient_s)
        for fleet in self._fleets.values():
            fleet.serve(world.now)
            news |= fleet.rescale(world.now) | fleet.release(world) or fleet.wanted.count != len(fleet.replicas)
        if news:  # else what has ended is told with what comes next
            self._patient_s = world.now + (PATIENT_S if self._fleets else 0.0)
            for _ in range(PASSES):
                if not self._tick(world):
                    break
            self._came = self._ended = False
        self._due_s = world.now + self._tick_s
        if self._fleets:
            return self._due_s
        return self._next(world.now) if world.waiting else inf

    def _next(self, now: float) -> float:
        """When somebody who waits may fare better even if nothing happens."""
        while self._pauses and self._pauses[0] <= now:
            heappop(self._pauses)
        return min([now + QUIET_S, *self._pauses[:1]])

    def _there(self, world: World) -> tuple[Node, ...]:
        """The nodes that are not gone; the very same values as long as nothing changes, which plans profit by."""
        if world.down != self._down:
            self._down = set(world.down)
            self._up = tuple(node for number, node in enumerate(self._nodes) if number not in self._down)
        return self._up

    def _recent(self, now: float) -> tuple[Failure, ...]:
        while self._failures and self._failures[0].at < now - FORGOTTEN_S:
            self._failures.popleft()
        return tuple(self._failures)

    def _tick(self, world: World) -> bool:
        """Plan once and do as it says. Returns whether something ended that others may be waiting for."""
        services = tuple(fleet.desired() for fleet in self._fleets.values())
        self.promises.pass_to(world.now)
        desired = Desired(
            tuple(self._jobs.values()),
            services,
            failures=self._recent(world.now),
            reservations=RESERVATIONS,
            tried=TRIED if services else ALL_TRIED,
            order=self._order,
            caution=self.promises.caution,
        )
        deployed = {name: status for name, fleet in self._fleets.items() if (status := fleet.status())}
        made = self._plan(desired, Snapshot(world.now, self._there(world), self._attempts, deployed), self._memo)
        self._memo = made.memo
        for action in made.actions:
            if action.verb in (Verb.DEPLOY, Verb.REMOVE):
                self._fleets[action.id].target = action.replicas or None
            elif action.verb is Verb.STOP:
                self._apply(action, world)
        for action in made.actions:
            if action.verb in (Verb.START, Verb.CLOSE):
                self._apply(action, world)
        self._tell(made)
        return self._deploy(world) or any(
            action.verb in (Verb.STOP, Verb.DEPLOY, Verb.REMOVE) for action in made.actions
        )

    def _deploy(self, world: World) -> bool:
        """Come nearer to the replicas that are to be, in the room that jobs have left to them. Whether some are
        missing."""
        names = [node.id for node in self._nodes] if self._fleets else []
        return bool([fleet for fleet in self._fleets.values() if not fleet.deploy(world, names)])

    def _tell(self, made: Plan) -> None:
        """The first estimate of a job's start is the one it is held to."""
        for id in self._untold:
            if estimate := made.estimates.get(id):
                self._runs[id].promised_s = estimate[1]
                self.promises.tell(id, estimate[1])
        self._untold.clear()

    def _apply(self, action: Action, world: World) -> None:
        id, run = action.id, self._runs[action.id]
        match action.verb:
            case Verb.START:
                on = Counter[int]()
                for node, bundle in zip(action.nodes, self._jobs[id].gang_on(action.nodes).bundles, strict=True):
                    on[self._number[node]] += int(bundle.gpus)
                world.start(run, tuple(on.items()))
                self._untold.discard(id)
                self.promises.began(id)
                self._attempts[id] = Attempt(id, action.attempt, AttemptPhase.RUNNING, nodes=action.nodes)
            case Verb.STOP:
                world.preempt(run)
                self._attempts[id] = replace(self._attempts[id], phase=AttemptPhase.YIELDED, stopping_since=world.now)
            case Verb.CLOSE:
                self._attempts.pop(id, None)
                self._note(action, world)
        if action.verb is Verb.CLOSE and action.phase and action.phase.final:
            del self._jobs[id], self._runs[id]
            if run.ended_s is None:
                world.give_up(run)
        else:
            self._jobs[id] = record(self._jobs[id], action, world.now)

    def _note(self, action: Action, world: World) -> None:
        """Remember a failure, and when it is tried again."""
        if action.failed:
            self._failures.append(Failure(world.now, action.id, self._jobs[action.id].placement))
            heappush(self._pauses, action.not_before)

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
