"""What must hold of the plan for a world, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llmos.core.lifecycle import record
from llmos.core.plan import plan
from llmos.core.types import Attempt, AttemptPhase, Desired, Job, Plan, Resources, Snapshot, Verb
from llmos.sim.invariants import violations
from llmos.sim.reading import turn
from llmos.sim.simulation import Planner
from tests.unit.sim.worlds import NOW, World


def wrong(world: World, planner: Planner = plan) -> list[str]:
    """What does not hold of the plan for ``world``, each sentence led by the name of what it breaks."""
    desired, snapshot = world.inputs()
    made = planner(desired, snapshot, None)
    return [
        *violations(desired, snapshot, made),
        *_remembers(planner, desired, snapshot, made),
        *_settles(planner, desired, snapshot, made),
        *_welcomes_nodes(planner, desired, snapshot, made),
    ]


def _remembers(planner: Planner, desired: Desired, snapshot: Snapshot, made: Plan) -> Iterator[str]:
    """With the memo of this plan, or that of another state of the cluster, the plan is the same."""
    without = replace(desired, jobs=desired.jobs[1:])
    idle = replace(snapshot, attempts=dict(list(snapshot.attempts.items())[1:]))
    others = [(without, replace(snapshot, nodes=snapshot.nodes[1:])), (without, snapshot), (desired, idle)]
    for memo in (made.memo, *(planner(*other, None).memo for other in others)):
        yield from _the_same(planner(desired, snapshot, memo), made)
    later = carried_out(desired, snapshot, made)
    late = later[0], replace(later[1], now=NOW + 60.0)
    yield from _the_same(planner(*late, made.memo), planner(*late, None))


def _the_same(one: Plan, other: Plan) -> Iterator[str]:
    if (one.actions, dict(one.waiting), one.estimates) != (other.actions, dict(other.waiting), other.estimates):
        yield f"memo_changes_nothing: {one} with a memo, {other} without"


def _settles(planner: Planner, desired: Desired, snapshot: Snapshot, made: Plan) -> Iterator[str]:
    """Once the plan has taken effect, planning again changes nothing."""
    again = planner(*carried_out(desired, snapshot, made), made.memo)
    if again.actions:
        yield f"planning_twice_changes_nothing: {again.actions} after {made.actions}"


def _welcomes_nodes(planner: Planner, desired: Desired, snapshot: Snapshot, made: Plan) -> Iterator[str]:
    """One more node evicts no running job, and does not delay the first job of the queue. (Told of one tenant.)

    What it may do: let a job of a higher priority start at last, for which evictions had not been enough before; and
    let others grow, or no more, for there is other room.
    """
    if len({job.tenant for job in desired.jobs}) != 1 or desired.tenants or desired.failures or desired.services:
        return
    node = replace(snapshot.nodes[0], id="new", foreign=Resources(), draining=False)
    more = planner(desired, replace(snapshot, nodes=(*snapshot.nodes, node)), None)
    before, after = (_evicted(one) for one in (made, more))
    started = {action.id for action in made.actions if action.verb is Verb.START}
    for id in after.keys() - before.keys():
        helped = after[id].partition("room for ")[2].partition(" ")[0]
        if helped in started or (before and len(after) > len(before)) or not after[id].startswith("preempted"):
            yield f"a_node_evicts_nobody: {id} ends because of a new node: {after[id]}"
    queue = [job for job in desired.jobs if job.attempt == 0 and not job.after]
    first = min(queue, key=lambda job: turn(job, desired.order), default=None)
    if first and _start_of(first, made) < _start_of(first, more):
        at, without = _start_of(first, more), _start_of(first, made)
        yield f"a_node_delays_nobody: {first.id} starts at {at}, without the node at {without}"


def _evicted(made: Plan) -> dict[str, str]:
    """Who ends, and why; without those that end to go on larger."""
    stops = (action for action in made.actions if action.verb is Verb.STOP)
    return {action.id: action.why for action in stops if not action.why.startswith("grows")}


def _start_of(job: Job, made: Plan) -> float:
    if any(action.verb is Verb.START and action.id == job.id for action in made.actions):
        return NOW
    return made.estimates.get(job.id, (float("inf"),))[0]


def carried_out(desired: Desired, snapshot: Snapshot, made: Plan) -> tuple[Desired, Snapshot]:
    """The inputs of the next plan, if all of ``made`` takes effect at once."""
    jobs = {job.id: job for job in desired.jobs}
    attempts = dict(snapshot.attempts)
    ended, services = dict(desired.ended), dict(snapshot.services)
    for action in made.actions:
        if action.verb is Verb.DEPLOY:
            services[action.id] = replace(services[action.id], target=action.replicas)
            continue
        if action.verb is Verb.REMOVE:  # of a service without replicas, whose deployment had some
            services[action.id] = replace(services[action.id], removing=True)
            continue
        if action.phase and action.phase.final:
            ended[action.id] = action.phase
            del jobs[action.id]
            continue
        jobs[action.id] = record(jobs[action.id], action, snapshot.now)
        if action.verb is Verb.START:
            attempts[action.id] = Attempt(action.id, action.attempt, AttemptPhase.STARTING, nodes=action.nodes)
        elif action.verb is Verb.STOP:
            attempts[action.id] = replace(attempts[action.id], stopping_since=snapshot.now)
    after = replace(snapshot, attempts=attempts, services=services)
    return replace(desired, jobs=tuple(jobs.values()), ended=ended), after
