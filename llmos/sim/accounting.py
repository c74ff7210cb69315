"""What is taken and what is left on a simulated cluster, counted with no help from the planner's own bookkeeping."""

from __future__ import annotations

from dataclasses import replace

from llmos.core.placement import place
from llmos.core.types import Desired, Gang, Job, Resources, Service, Snapshot, Strategy


def sized(job: Job, nodes: tuple[str, ...]) -> Gang:
    """The gang that ``job`` runs as on ``nodes``."""
    return {len(gang.bundles): gang for gang in (job.gang, *job.larger)}.get(len(nodes), job.gang)


def placeable(job: Job, left: dict[str, Resources], snapshot: Snapshot) -> bool:
    """Whether some gang of ``job`` fits into what is left."""
    return any(placed(gang, left, snapshot) for gang in (job.gang, *job.larger))


def placed(gang: Gang, left: dict[str, Resources], snapshot: Snapshot) -> bool:
    """Whether ``gang`` fits into what is left on nodes that it may use together."""
    whole = replace(gang, together=len(gang.bundles)) if gang.strategy is Strategy.STRICT_PACK else gang
    tried = ({node: room for node, room in left.items() if node in nodes} for nodes in domains(gang, snapshot))
    return any(place(whole, room) for room in tried)


def domains(gang: Gang, snapshot: Snapshot) -> list[set[str]]:
    """The sets of nodes on which ``gang`` may lie: those that have its labels, by the value of its topology's."""
    found: dict[str | None, set[str]] = {}
    for node in snapshot.nodes:
        labels = dict(node.labels)
        fit = all(labels.get(name) in values.split("|") for name, values in gang.labels)
        if fit and (gang.topology is None or gang.topology in labels):
            found.setdefault(labels[gang.topology] if gang.topology else None, set()).add(node.id)
    return list(found.values())


def free(desired: Desired, snapshot: Snapshot) -> dict[str, Resources]:
    """What living attempts, replicas and foreign work leave on each node that takes work.

    Nothing where something is that nobody asked for (any more): how much that holds cannot be known.
    """
    free = {node.id: node.total - node.foreign for node in snapshot.nodes if not node.draining}
    _take_services(desired.services, snapshot, free)
    for job in desired.jobs:
        seen = snapshot.attempts.get(job.id)
        if seen and seen.alive and seen.number == job.attempt:
            take(sized(job, seen.nodes), seen.nodes, free)
    unknown = _unknown(desired, snapshot)
    return {node: left for node, left in free.items() if node not in unknown}


def _unknown(desired: Desired, snapshot: Snapshot) -> set[str]:
    """The nodes of attempts and deployments that are not desired as they are."""
    attempts = {(job.id, job.attempt) for job in desired.jobs}
    digests = {(service.id, service.digest) for service in desired.services}
    strays = [
        seen.nodes for seen in snapshot.attempts.values() if seen.alive and (seen.job, seen.number) not in attempts
    ]
    leaving = [s.nodes for s in snapshot.services.values() if s.removing or (s.id, s.digest) not in digests]
    return {node for nodes in strays + leaving for node in nodes}


def unserved(desired: Desired, snapshot: Snapshot) -> dict[str, Resources]:
    """What would be free if no job and nothing foreign ran, with every wanted replica up."""
    free = {node.id: node.total for node in snapshot.nodes if not node.draining}
    _take_services(desired.services, snapshot, free)
    for service in desired.services:
        status = snapshot.services.get(service.id)
        for _ in range(service.replicas - (status.ready if status else 0)):
            take(service.gang, place(service.gang, free) or (), free)
    return free


def _take_services(services: tuple[Service, ...], snapshot: Snapshot, free: dict[str, Resources]) -> None:
    for service in services:
        status = snapshot.services.get(service.id)
        for i, node in enumerate(status.nodes if status else ()):
            take(Gang((service.gang.bundles[i % len(service.gang.bundles)],)), (node,), free)


def take_missing(services: tuple[Service, ...], snapshot: Snapshot, free: dict[str, Resources]) -> None:
    """Take the room of replicas that are wanted and have no place yet, as far as there is some."""
    for service in services:
        status = snapshot.services.get(service.id)
        there = len(status.nodes) // len(service.gang.bundles) if status else 0
        for _ in range(service.replicas - there):
            take(service.gang, place(service.gang, free) or (), free)


def take(gang: Gang, nodes: tuple[str, ...], free: dict[str, Resources]) -> None:
    """Take what ``gang`` holds on ``nodes`` from what is free."""
    for bundle, node in zip(gang.bundles, nodes, strict=False):
        if node in free:
            free[node] -= bundle
