"""From what a user wrote to what ``plan`` decides on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache

from llmos.core.types import Gang, Job, Resources, Strategy, Tenant
from llmos.spec import DEFAULT_TENANT, Service, to_dict
from llmos.spec import Job as JobSpec
from llmos.spec import Resources as ResourcesSpec
from llmos.spec import Tenant as TenantSpec


def asked(spec: JobSpec) -> Job:
    """What the scheduler reads of a job's spec; nothing has happened to it yet."""
    gang, *larger = job_gangs(spec)
    return Job(
        spec.name,
        gang,
        submitted_at=0.0,
        retries=spec.retries,
        max_runtime_s=spec.max_runtime,
        larger=tuple(larger),
        grace_s=spec.grace,
        grow_every_s=spec.workers.grow_every,
        tenant=spec.tenant or DEFAULT_TENANT,
        priority=spec.priority,
        after=spec.after,
        estimate_s=spec.expected_runtime,
        preemptible=spec.preemptible,
    )


def job_gangs(spec: JobSpec) -> tuple[Gang, ...]:
    """The gangs that the job may run as, the smallest first: a bundle per worker, tensor-parallel ones on one node."""
    strategy, labels = Strategy(spec.gang.strategy), tuple(sorted(spec.gang.labels.items()))
    one = bundle(spec.resources)
    return tuple(_gang(one, mesh.size, mesh.tp, strategy, spec.gang.topology, labels) for mesh in spec.meshes)


@lru_cache(maxsize=1024)
def _gang(
    one: Resources,
    count: int,
    together: int,
    strategy: Strategy,
    topology: str | None,
    labels: tuple[tuple[str, str], ...],
) -> Gang:
    """``count`` bundles of ``one``. Cached: what equal jobs need is looked up by identity from then on."""
    return Gang((one,) * count, together, strategy, topology, labels)


def tenant(spec: TenantSpec, used: Resources, spent_gpu_s: float) -> Tenant:
    """A tenant with what its own jobs have ``used`` on average and ``spent_gpu_s`` in all."""
    most = spec.quota
    quota = Resources(most.cpus or 0.0, most.gpus or 0.0, most.memory or 0, _custom(most.custom)) if most else None
    budget_gpu_s = None if spec.budget is None else spec.budget * 3600
    return Tenant(
        spec.name, spec.parent, spec.share, spec.borrow_limit, quota, budget_gpu_s, used=used, spent_gpu_s=spent_gpu_s
    )


def replica_gang(spec: Service) -> Gang:
    """What one replica holds: a bundle per rank, tensor-parallel ones on one node; with vLLM all of them, for its
    processes start one another."""
    mesh = spec.mesh
    return Gang((bundle(spec.resources),) * mesh.size, mesh.tp if spec.engine == "llmos" else mesh.size)


def replica_groups(spec: Service) -> tuple[Resources, ...]:
    """What one replica holds of each node that it may need: the bundles of :func:`replica_gang` that stay together."""
    rank, gang = bundle(spec.resources), replica_gang(spec)
    size = gang.together
    custom = tuple((name, amount * size) for name, amount in rank.custom)
    group = Resources(rank.cpus * size, rank.gpus * size, rank.memory_bytes * size, custom)
    return (group,) * (len(gang.bundles) // size)


NOT_RUN = ("aliases", "replicas", "idle_s", "slo", "limits", "canary", "keep_s")
"""The fields of a service that say how many replicas it has and who may ask them, not what they run."""


def bare(spec: Service) -> Service:
    """Only what replicas run: the rest has its default."""
    return spec.model_copy(update={name: Service.model_fields[name].get_default() for name in NOT_RUN})


def deployment_digest(spec: Service) -> str:
    """Changes when replicas have to be started anew, which is not so when only their number changes.

    Fields that say nothing about what runs are left out, so that a digest outlives those that came later.
    """
    ran = {field: value for field, value in to_dict(bare(spec)).items() if field not in NOT_RUN or field == "replicas"}
    return hashlib.sha256(json.dumps(ran, sort_keys=True).encode()).hexdigest()


def unit(service: str, revision: int) -> str:
    """What ``plan`` and Ray Serve know a revision of a service by."""
    return f"{service}-{revision}"


def of_unit(unit: str) -> tuple[str, int]:
    """The service and the revision of a unit; revision 0 where the name is none of :func:`unit`'s."""
    service, _, revision = unit.rpartition("-")
    return (service, int(revision)) if service and revision.isdecimal() else (unit, 0)


def bundle(wanted: ResourcesSpec) -> Resources:
    """What one rank holds of its node."""
    return Resources(wanted.cpus, wanted.gpus, wanted.memory or 0, _custom(wanted.custom))


def _custom(amounts: Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((amounts or {}).items()))
