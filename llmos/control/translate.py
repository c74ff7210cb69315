"""From what a user wrote to what ``plan`` decides on."""

from __future__ import annotations

from llmos.core.types import Gang, Resources
from llmos.spec import Job, Replicas, Service, digest
from llmos.spec import Resources as ResourcesSpec


def job_gangs(spec: Job) -> tuple[Gang, ...]:
    """The gangs that the job may run as, the smallest first: a bundle per worker, tensor-parallel ones on one node."""
    return tuple(Gang((bundle(spec.resources),) * mesh.size, mesh.tp) for mesh in spec.meshes)


def replica_gang(spec: Service) -> Gang:
    """What one replica holds: a bundle per rank, tensor-parallel ones on one node; with vLLM all of them, for its
    processes start one another."""
    mesh = spec.mesh
    return Gang((bundle(spec.resources),) * mesh.size, mesh.tp if spec.engine == "llmos" else mesh.size)


def replica_groups(spec: Service) -> tuple[Resources, ...]:
    """What one replica holds of each node that it may need: the bundles of :func:`replica_gang` that stay together."""
    rank, gang = bundle(spec.resources), replica_gang(spec)
    size = gang.together
    group = Resources(rank.cpus * size, rank.gpus * size, rank.memory_bytes * size)
    return (group,) * (len(gang.bundles) // size)


def deployment_digest(spec: Service) -> str:
    """Changes when replicas have to be started anew, which is not so when only their number changes."""
    return digest(spec.model_copy(update={"replicas": Replicas()}))


def bundle(wanted: ResourcesSpec) -> Resources:
    """What one rank holds of its node."""
    return Resources(wanted.cpus, wanted.gpus, wanted.memory or 0)
