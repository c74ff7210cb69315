"""What must hold of a planner over time, beyond what `invariants` can read off a single plan.

Each function yields a sentence per violation, led by its own name.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmos.core.types import Desired, Plan, Snapshot, Verb
from llmos.sim.cluster import SimCluster
from llmos.sim.simulation import Planner, Simulation


def repeatable(planner: Planner, desired: Desired, snapshot: Snapshot, made: Plan) -> Iterator[str]:
    """The same input gives the same plan, with the memo of the last tick or without."""
    afresh = planner(desired, snapshot, None)
    if (afresh.actions, afresh.waiting) != (made.actions, made.waiting):
        yield f"repeatable: {made} with a memo, {afresh} without"


def idempotent(planner: Planner, simulation: Simulation, made: Plan) -> Iterator[str]:
    """Once all of ``made`` has taken effect nothing is left to do, but what that effect makes possible.

    That is: a killed attempt is closed, and what it or a smaller service gives back is given out, also to a job that
    yields to grow.
    """
    again = planner(*_inputs(simulation), made.memo)
    follows = {Verb.CLOSE for action in made.actions if action.force}
    follows |= {
        follow
        for follow in (Verb.START, Verb.STOP)
        for action in made.actions
        if action.force or action.verb is Verb.DEPLOY
    }
    if left := [action for action in again.actions if action.verb not in follows]:
        yield f"idempotent: {left}"


def sound(cluster: SimCluster) -> Iterator[str]:
    """No node is given more than it has, and no job has two attempts alive."""
    for node, free in cluster.free().items():
        if min(free.cpus, free.gpus, free.memory_bytes, *(amount for _, amount in free.custom)) < -1e-6:
            yield f"sound: {node} is overcommitted: {free}"
    jobs = [attempt.job for attempt in cluster.living()]
    if len(jobs) > len(set(jobs)):
        yield f"sound: two attempts of a job are alive: {sorted(jobs)}"


def none_starve(planner: Planner, simulation: Simulation) -> Iterator[str]:
    """After a long time with nothing in the way, only jobs are left that no empty cluster could hold."""
    waiting = planner(*_inputs(simulation), None).waiting
    for id, job in simulation.jobs.items():
        if job.cancelled or "cannot start" not in waiting.get(id, ""):
            yield f"none_starve: {id} never ended: {waiting.get(id)}"
    for attempt in simulation.cluster.living():
        yield f"none_starve: {attempt} never ended"


def counted(simulation: Simulation) -> Iterator[str]:
    """The attempts of each job are numbered 1, 2, 3, … in the order of their starts."""
    for id in simulation.jobs.keys() | simulation.ended.keys():
        starts = [action.attempt for _, action in simulation.history if action.id == id and action.verb is Verb.START]
        distinct = list(dict.fromkeys(starts))
        if distinct != list(range(1, len(distinct) + 1)) or starts != sorted(starts):
            yield f"counted: {id} had the attempts {starts}"


def _inputs(simulation: Simulation) -> tuple[Desired, Snapshot]:
    desired = simulation.desired()
    return desired, simulation.cluster.observe(desired.jobs, desired.services)
