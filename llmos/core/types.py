"""The values that decisions are made of: frozen, slotted, free of Ray, torch, clocks and files.

``plan(desired, snapshot, memo)`` reads a :class:`Desired` (what people asked for, from the store) and a
:class:`Snapshot` (what the cluster looks like, from the adapter) and returns a :class:`Plan` of :class:`Action`.
Times are seconds since the epoch, always handed in; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of each kind of resource. ``custom`` holds Ray custom resources as sorted (name, amount) pairs."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_bytes: int = 0
    custom: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster. ``foreign`` is what work that llmos did not start holds there."""

    id: str
    total: Resources
    foreign: Resources = Resources()
    labels: tuple[tuple[str, str], ...] = ()
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Gang:
    """Bundles that are placed all or none. Bundle ``i`` is rank ``i``'s share of one node."""

    bundles: tuple[Resources, ...]


class AttemptPhase(StrEnum):
    """What the adapter sees of an attempt. ABSENT: no trace that it ever ran. LOST: it ran, and ended without a result."""

    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    YIELDED = "yielded"  # ended on request after a checkpoint: resumes without counting as a failure
    FAILED = "failed"
    LOST = "lost"


class JobPhase(StrEnum):
    """What people see of a job. The last three are final."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (JobPhase.SUCCEEDED, JobPhase.FAILED, JobPhase.CANCELLED)


@dataclass(frozen=True, slots=True)
class Job:
    """An unfinished job as the store knows it.

    ``attempt`` is the number of the attempt that is open (started, end not yet recorded), 0 when none is.
    ``attempts`` counts all attempts ever opened, ``failures`` those that failed or were lost. ``placement`` are the node ids the open
    attempt was given, one per bundle. ``not_before`` holds a retry back (backoff).
    """

    id: str
    gang: Gang
    submitted_at: float
    attempt: int = 0
    attempts: int = 0
    failures: int = 0
    retries: int = 0
    cancelled: bool = False
    opened_at: float = 0.0
    not_before: float = 0.0
    run_s: float = 0.0
    max_runtime_s: float | None = None
    placement: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """A service as people want it. ``digest`` changes when its spec does. ``bundle`` is one replica's gang."""

    id: str
    digest: str
    gang: Gang
    replicas: int
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Desired:
    jobs: tuple[Job, ...] = ()
    services: tuple[Service, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the adapter sees of one job's open attempt. ``nodes`` is where its bundles landed, when known."""

    job: str
    number: int
    phase: AttemptPhase
    error: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What the adapter sees of one deployed service: the spec it runs, replicas told and ready, and where."""

    id: str
    digest: str
    target: int
    ready: int
    message: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at ``now``. ``attempts`` is keyed by job id, ``services`` by service id."""

    now: float
    nodes: tuple[Node, ...] = ()
    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    services: Mapping[str, ServiceStatus] = field(default_factory=dict)


class Verb(StrEnum):
    """START/STOP an attempt; CLOSE records its end and what follows (``phase``); DEPLOY/REMOVE a service."""

    START = "start"
    STOP = "stop"
    CLOSE = "close"
    DEPLOY = "deploy"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Action:
    """One step towards what is desired. ``why`` is written for people and becomes the event's text.

    START: ``attempt`` to open (or to start again, if it is recorded as open yet ABSENT) on ``nodes``, one per bundle.
    STOP: end ``attempt`` (cancel, max_runtime). CLOSE: ``attempt`` (0 when none was open) has ended; the job goes to ``phase``
    (QUEUED means another attempt, not before ``not_before``). DEPLOY: the service with ``replicas``. REMOVE: the service.
    """

    verb: Verb
    id: str
    attempt: int = 0
    nodes: tuple[str, ...] = ()
    phase: JobPhase | None = None
    not_before: float = 0.0
    failed: bool = False
    replicas: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions to carry out in order, why each waiting job waits, and the memo for the next tick."""

    actions: tuple[Action, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)
    memo: object = None
