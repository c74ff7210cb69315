"""From what a user wrote to what ``plan`` decides on."""

from __future__ import annotations

from llmos.core.types import Gang, Resources
from llmos.spec import Job, Replicas, Service, digest
from llmos.spec import Resources as ResourcesSpec


def job_gangs(spec: Job) -> tuple[Gang, ...]:
    """The gangs that the job may run as, the smallest first: a bundle per worker, tensor-parallel ones on one node."""
    return tuple(Gang((bundle(spec.resources),) * mesh.size, mesh.tp) for mesh in spec.meshes)


def replica_gang(spec: Service) -> Gang:
    """What one replica holds, on one node: what each rank of its mesh does, together."""
    rank, ranks = bundle(spec.resources), spec.mesh.size
    return Gang((Resources(rank.cpus * ranks, rank.gpus * ranks, rank.memory_bytes * ranks),))


def deployment_digest(spec: Service) -> str:
    """Changes when replicas have to be started anew, which is not so when only their number changes."""
    return digest(spec.model_copy(update={"replicas": Replicas()}))


def bundle(wanted: ResourcesSpec) -> Resources:
    """What one rank holds of its node."""
    return Resources(wanted.cpus, wanted.gpus, wanted.memory or 0)
