"""The values that decisions are made of: frozen, slotted, free of Ray, torch, clocks and files.

``plan(desired, snapshot, memo)`` reads a :class:`Desired` (what people asked for, from the store) and a
:class:`Snapshot` (what the cluster looks like, from the adapter) and returns a :class:`Plan` of :class:`Action`.
Times are seconds since the epoch, always handed in; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from enum import StrEnum

_ROUNDING = 1e-6
"""Sums of fractions such as ten times 0.1 may miss by less than this; Ray itself counts in units of 1e-4."""


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of each kind of resource. ``custom`` holds Ray custom resources as sorted (name, amount) pairs."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_bytes: int = 0
    custom: tuple[tuple[str, float], ...] = ()

    def __add__(self, other: Resources) -> Resources:
        return self._combine(other, 1)

    def __sub__(self, other: Resources) -> Resources:
        return self._combine(other, -1)

    def fits_in(self, free: Resources) -> bool:
        """Whether ``free`` holds at least this much of everything."""
        if (
            self.cpus > free.cpus + _ROUNDING
            or self.gpus > free.gpus + _ROUNDING
            or self.memory_bytes > free.memory_bytes
        ):
            return False
        available = dict(free.custom)
        return all(amount <= available.get(name, 0.0) + _ROUNDING for name, amount in self.custom)

    def _combine(self, other: Resources, sign: int) -> Resources:
        custom = self.custom
        if other.custom:
            mine, theirs = dict(self.custom), dict(other.custom)
            custom = tuple(
                (k, mine.get(k, 0.0) + sign * theirs.get(k, 0.0)) for k in sorted(mine.keys() | theirs.keys())
            )
        return Resources(
            self.cpus + sign * other.cpus,
            self.gpus + sign * other.gpus,
            self.memory_bytes + sign * other.memory_bytes,
            custom,
        )


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
    """Bundles that are placed all or none. Bundle ``i`` is rank ``i``'s share of one node.

    Every ``together`` consecutive bundles share a node: ranks that talk within each layer.
    """

    bundles: tuple[Resources, ...]
    together: int = 1


class AttemptPhase(StrEnum):
    """What the adapter sees of an attempt. ABSENT: no trace that it ever ran. LOST: it ran and left no result."""

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

    ``gang`` is the smallest that it may run as, ``larger`` are the others, by their number of bundles.
    ``attempt`` is the number of the attempt that is open (started, end not yet recorded), 0 when none is.
    ``attempts`` counts all attempts ever opened, ``failures`` those that failed or were lost. ``placement`` are the
    node ids the open attempt was given, one per bundle. ``not_before`` holds a retry back (backoff). ``opened_at`` is
    when the open attempt was last started, ``run_s`` how long earlier attempts were open; ``max_runtime_s`` bounds
    their sum. ``grace_s`` is how long an attempt that was asked to end may take for its last checkpoint before it is
    killed, ``grow_every_s`` how long one runs at least before it is ended so that the next one can be larger.
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
    larger: tuple[Gang, ...] = ()
    grace_s: float = 60.0
    grow_every_s: float = 60.0

    @property
    def gangs(self) -> tuple[Gang, ...]:
        """Every gang that the job may run as, the smallest first."""
        return (self.gang, *self.larger)

    def gang_on(self, nodes: Sized) -> Gang:
        """The one that has a bundle for each of ``nodes``; the smallest if none has."""
        return next((gang for gang in self.gangs if len(gang.bundles) == len(nodes)), self.gang)


@dataclass(frozen=True, slots=True)
class Service:
    """A service as people want it. ``digest`` changes when its spec does. ``gang`` is what one replica holds."""

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
    """What the adapter sees of one job's attempt. ``nodes`` is where its bundles landed, when known.

    ``stopping_since`` is when the attempt was first asked to end; it keeps its resources until it has ended.
    ``retry`` of a FAILED one says whether another attempt could go better: bad data stays bad.
    """

    job: str
    number: int
    phase: AttemptPhase
    error: str = ""
    nodes: tuple[str, ...] = ()
    stopping_since: float | None = None
    retry: bool = True

    @property
    def alive(self) -> bool:
        """Whether a process of it exists, so that it holds resources."""
        return self.phase in (AttemptPhase.STARTING, AttemptPhase.RUNNING)


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What the adapter sees of one deployed service: the spec it runs, replicas told and ready, and where.

    ``nodes`` names a node per bundle of each replica that exists, replica after replica. ``removing``: asked to go.
    """

    id: str
    digest: str
    target: int
    ready: int
    message: str = ""
    nodes: tuple[str, ...] = ()
    removing: bool = False


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
    STOP: ask ``attempt`` to end (cancel, max_runtime, other nodes), or kill it when ``force``: it was asked, did not.
    CLOSE: ``attempt`` (0 when none was open) has ended; the job goes to ``phase`` (QUEUED means another attempt, not
    before ``not_before``); ``failed`` says whether it counts as a failure.
    DEPLOY: the service with ``replicas``. REMOVE: the service.
    """

    verb: Verb
    id: str
    attempt: int = 0
    nodes: tuple[str, ...] = ()
    phase: JobPhase | None = None
    not_before: float = 0.0
    failed: bool = False
    force: bool = False
    replicas: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions to carry out in order, why each waiting job waits, and the memo for the next tick."""

    actions: tuple[Action, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)
    memo: object = None
