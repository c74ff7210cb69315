"""The values that decisions are made of: frozen, slotted, free of Ray, torch, clocks and files.

``plan(desired, snapshot, memo)`` reads a :class:`Desired` (what people asked for, from the store) and a
:class:`Snapshot` (what the cluster looks like, from the adapter) and returns a :class:`Plan` of :class:`Action`.
Times are seconds since the epoch, always handed in; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field, fields
from enum import StrEnum
from operator import attrgetter
from typing import Any

from llmos.core.resources import Gang as Gang
from llmos.core.resources import Node as Node
from llmos.core.resources import Resources as Resources
from llmos.core.resources import Strategy as Strategy


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
    Jobs of a higher ``priority`` go first within their ``tenant``. ``after`` are jobs that must have succeeded before.
    ``estimate_s`` is the median of how long the job runs in all, ``estimate_high_s`` the time that it keeps nine times
    of ten; None: not known. ``checkpointed_at`` is when its last checkpoint was committed. ``resumes``: it ran, and
    had to end for no fault of its own, so it goes on before all of its queue that never ran. ``goodput`` is what was
    measured: useful work per second (throughput × statistical efficiency) by number of bundles; ``resize_s`` is how
    long it makes no progress when it goes on in another size.
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
    tenant: str = "default"
    priority: int = 0
    after: tuple[str, ...] = ()
    estimate_s: float | None = None
    estimate_high_s: float | None = None
    preemptible: bool = True
    checkpointed_at: float | None = None
    resumes: bool = False
    goodput: tuple[tuple[int, float], ...] = ()
    resize_s: float = 0.0

    @property
    def gangs(self) -> tuple[Gang, ...]:
        """Every gang that the job may run as, the smallest first."""
        return (self.gang, *self.larger)

    def but(self, **changed: Any) -> Job:
        """The same with other values: what ``dataclasses.replace`` does, in a third of its time."""
        return Job(**dict(zip(_NAMES, _values(self), strict=True)) | changed)

    def gang_on(self, nodes: Sized) -> Gang:
        """The one that has a bundle for each of ``nodes``; the smallest if none has."""
        return next((gang for gang in self.gangs if len(gang.bundles) == len(nodes)), self.gang)


_values = attrgetter(*(_NAMES := [field.name for field in fields(Job)]))


@dataclass(frozen=True, slots=True)
class Service:
    """A service as people want it. ``digest`` changes when its spec does. ``gang`` is what one replica holds.

    It has room of its own for ``owned`` replicas. What it does not use of that is lent (:mod:`llmos.core.lending`).
    """

    id: str
    digest: str
    gang: Gang
    replicas: int
    created_at: float = 0.0
    owned: int = 0


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who jobs belong to. Limits and usage of a tenant are those of all its descendants together with its own.

    ``share`` weighs it against its siblings: with them it makes the guaranteed part of what their parent has.
    ``borrow_limit`` is how much more than that it may hold, as a fraction of it (0.5: one and a half times); None: all.
    ``quota`` bounds what it holds at once; an amount of 0 bounds nothing. ``budget_gpu_s`` bounds the GPU-seconds it
    may use in all, of which ``spent_gpu_s`` are used. ``used`` is the average of what it held, old times decayed
    (:func:`llmos.core.queues.decayed`). The last two are its own jobs', without descendants.
    """

    id: str
    parent: str | None = None
    share: float = 1.0
    borrow_limit: float | None = None
    quota: Resources | None = None
    budget_gpu_s: float | None = None
    used: Resources = field(default_factory=Resources)
    spent_gpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeKind:
    """A kind of node that the autoscaler can start: ``fewest`` to ``most`` of them.

    ``trouble`` is why the last launch failed, if it did; the next is not tried before ``not_before``.
    """

    name: str
    total: Resources
    labels: tuple[tuple[str, str], ...] = ()
    fewest: int = 0
    most: int = 0
    not_before: float = 0.0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt of ``job`` failed or was lost at ``at``; it had run on ``nodes``."""

    at: float
    job: str
    nodes: tuple[str, ...]


class Order(StrEnum):
    """Who goes first among jobs of one tenant and priority: see :func:`llmos.core.queues.entry`."""

    FIFO = "fifo"
    SHORTEST = "shortest"


@dataclass(frozen=True, slots=True)
class Desired:
    """What people asked for. No ``tenants``: all jobs are one's. ``ended`` are the phases of jobs that others come
    after.

    ``reservations`` is how many of the first blocked jobs get a time and nodes that later ones may not take: a few
    (EASY backfill), or as many as there are (conservative). ``tried`` is how many jobs that wait for room are looked
    at, in order, and get an estimate; the others show their place in the queue. ``kinds`` are what the autoscaler can
    start, ``failures`` the recent ones, for the quarantine of nodes. ``order`` is who goes first among equals.
    ``caution`` stretches the late estimates of starts (:mod:`llmos.core.promises`).
    """

    jobs: tuple[Job, ...] = ()
    services: tuple[Service, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    ended: Mapping[str, JobPhase] = field(default_factory=dict)
    reservations: int = 4
    tried: int = 1000
    kinds: tuple[NodeKind, ...] = ()
    failures: tuple[Failure, ...] = ()
    order: Order = Order.FIFO
    caution: float = 1.0


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
    """Actions to carry out in order, why each waiting job waits, and the memo for the next tick.

    ``estimates`` are when the first waiting jobs start: (median, with nine chances of ten), seconds since the epoch.
    ``wanted_nodes`` is how many nodes of each kind the autoscaler should keep. ``quarantined`` are the nodes that take
    no new work, and why. ``lent`` is how many GPUs on each node belong to services and are used by jobs.
    """

    actions: tuple[Action, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)
    memo: object = field(default=None, compare=False)
    estimates: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    wanted_nodes: Mapping[str, int] = field(default_factory=dict)
    quarantined: Mapping[str, str] = field(default_factory=dict)
    lent: Mapping[str, float] = field(default_factory=dict)
