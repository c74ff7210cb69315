"""Short names for the values that these tests are made of."""

from __future__ import annotations

from typing import Any

from llmos.core.plan import plan
from llmos.core.types import Attempt, AttemptPhase, Desired, Gang, Job, Node, Plan, Resources, ServiceStatus, Snapshot

RUNNING, STARTING, LOST, FAILED = AttemptPhase.RUNNING, AttemptPhase.STARTING, AttemptPhase.LOST, AttemptPhase.FAILED
NOW = 1000.0


def cpus(*amounts: float) -> Gang:
    """A gang with a bundle of each amount of CPUs."""
    return Gang(tuple(Resources(cpus=amount) for amount in amounts))


def node(id: str, cpus: float = 2, **fields: Any) -> Node:
    return Node(id, Resources(cpus=cpus), **fields)


def job(id: str, gang: Gang | None = None, at: float = 0.0, **fields: Any) -> Job:
    return Job(id, gang or cpus(1), at, **fields)


def running(id: str, *nodes: str, number: int = 1, **fields: Any) -> tuple[Job, Attempt]:
    """A job that holds one CPU on each of ``nodes``, and its living attempt."""
    mine = Job(id, cpus(*[1] * len(nodes)), 0.0, attempt=number, attempts=number, opened_at=0.0, placement=nodes)
    return mine, Attempt(id, number, RUNNING, nodes=nodes, **fields)


def see(nodes: list[Node], *attempts: Attempt, now: float = NOW, services: tuple[ServiceStatus, ...] = ()) -> Snapshot:
    return Snapshot(now, tuple(nodes), {a.job: a for a in attempts}, {s.id: s for s in services})


def decide(snapshot: Snapshot, *jobs: Job, services: tuple[Any, ...] = (), memo: object = None) -> Plan:
    return plan(Desired(jobs, services), snapshot, memo)


def told(made: Plan) -> list[str]:
    """The actions in brief: ``"start a-1 on n0 n1"``, ``"close a-1 failed"``, …"""
    return [_brief(action) for action in made.actions]


def _brief(action: Any) -> str:
    number = f"-{action.attempt}" if action.attempt else ""
    where = f" on {' '.join(action.nodes)}" if action.nodes else ""
    rest = f" {action.phase}" if action.phase else " by force" if action.force else ""
    return f"{action.verb} {action.id}{number}{where}{rest}" + (f" x{action.replicas}" if action.replicas else "")
