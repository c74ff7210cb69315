"""What happened on a simulated cluster, for people: who held what and when, who waited, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llmos.core.types import Action, Attempt, AttemptPhase, Desired, JobPhase, Plan, Snapshot, Verb
from llmos.sim.cluster import SimCluster


@dataclass(slots=True)
class Block:
    """``owner``, a job or a service, held ``gpus`` on the node ``node`` from ``start_s`` to ``end_s``.

    ``asked_s`` is when it was asked to end, if it was; ``failed``: it ended before its work was done, unasked.
    """

    owner: str
    node: str
    gpus: float
    start_s: float
    end_s: float = math.inf
    asked_s: float | None = None
    failed: bool = False


@dataclass(slots=True)
class Span:
    """Something was so of ``of`` from ``start_s`` to ``end_s``: a job waited, a node was there, or took no work."""

    of: str
    start_s: float
    end_s: float = math.inf


@dataclass(slots=True)
class Life:
    """What became of a job. ``stops`` is how often it was asked to end so that others, or itself with other workers,
    could start; ``why`` is the first reason that it was given for waiting, ``said_s`` when it was first estimated to
    start, the median and with nine chances of ten; ``end`` is the last word on it. Times are seconds."""

    tenant: str
    submitted_s: float
    started_s: float | None = None
    ended_s: float | None = None
    phase: JobPhase = JobPhase.QUEUED
    stops: int = 0
    failures: int = 0
    waited_s: float = 0.0
    why: str = ""
    said_s: tuple[float, float] | None = None
    end: str = ""


@dataclass(slots=True)
class Chronicle:
    """Written by :meth:`planned` and :meth:`seen` as time passes. ``gpus`` is what a bundle of each job or service has.

    ``events`` are the actions with their times.
    """

    gpus: Mapping[str, float]
    blocks: list[Block] = field(default_factory=list)
    waits: list[Span] = field(default_factory=list)
    there: list[Span] = field(default_factory=list)
    shut: list[Span] = field(default_factory=list)
    lives: dict[str, Life] = field(default_factory=dict)
    events: list[tuple[float, Action]] = field(default_factory=list)
    _held: dict[tuple[str, int, str], list[Block]] = field(default_factory=dict)
    _spans: dict[tuple[str, str], Span] = field(default_factory=dict)

    def submitted(self, id: str, tenant: str, now: float) -> None:
        """A job has come, and waits."""
        self.lives[id] = Life(tenant, now)
        self._begin("waits", self.waits, id, now)

    def planned(self, desired: Desired, snapshot: Snapshot, plan: Plan) -> None:
        """What a plan says of those that wait, and which attempts it sees ended."""
        if any(what == "waits" and not self.lives[id].why for what, id in self._spans):
            self._told(plan)
        closed = {node.id for node in snapshot.nodes if node.draining} | set(plan.quarantined)
        self._only("shut", self.shut, closed, snapshot.now)
        for attempt in snapshot.attempts.values():
            if not attempt.alive:
                failed = attempt.phase in (AttemptPhase.FAILED, AttemptPhase.LOST)
                for block in self._held.pop((attempt.job, attempt.number, ""), ()):
                    block.end_s, block.failed = snapshot.now, failed

    def _told(self, plan: Plan) -> None:
        """The first reasons and estimates. They are worked out for whoever reads them: only when somebody is new."""
        for id, why in plan.waiting.items():
            life = self.lives[id]
            if not life.why:
                life.why, life.said_s = why, plan.estimates.get(id)

    def seen(self, cluster: SimCluster, actions: Iterable[Action]) -> None:
        """What is there once ``actions`` were carried out."""
        now = cluster.now
        for action in actions:
            self.events.append((now, action))
            if action.id in self.lives and action.verb not in (Verb.DEPLOY, Verb.REMOVE):
                self._acted(action, self.lives[action.id], now)
        self._only("there", self.there, cluster.nodes, now)
        self._replicas(cluster)
        for attempt in cluster.living():
            self._attempt(attempt, now)

    def finished(self, now: float) -> None:
        """Nobody looks any more: what is open is so until ``now``."""
        for span in (*self.waits, *self.there, *self.shut):
            span.end_s = min(span.end_s, now)
        for block in self.blocks:
            block.end_s = min(block.end_s, now)
        for span in self.waits:
            self.lives[span.of].waited_s += span.end_s - span.start_s

    def _acted(self, action: Action, life: Life, now: float) -> None:
        if action.verb is Verb.START:
            life.started_s = now if life.started_s is None else life.started_s
            life.phase = JobPhase.RUNNING
            self._end("waits", action.id, now)
        elif action.verb is Verb.STOP:
            life.stops += not action.force
        elif action.verb is Verb.CLOSE and action.phase:
            life.failures += action.failed
            life.phase = action.phase
            if action.phase.final:
                life.ended_s, life.end = now, action.why
                self._end("waits", action.id, now)
            else:
                self._begin("waits", self.waits, action.id, now)

    def _attempt(self, attempt: Attempt, now: float) -> None:
        key = (attempt.job, attempt.number, "")
        if key not in self._held:
            self._open(key, attempt.nodes, now)
        for block in self._held[key]:
            block.asked_s = attempt.stopping_since

    def _replicas(self, cluster: SimCluster) -> None:
        """Replicas are told apart by where they are, those on the same nodes by their number."""
        there: dict[tuple[str, int, str], tuple[str, ...]] = {}
        for id, status in cluster.observe((), ()).services.items():
            numbers: Counter[str] = Counter()
            for node in status.nodes:
                there[id, numbers[node], node] = (node,)
                numbers[node] += 1
        for key in [key for key in self._held if key[2] and key not in there]:
            for block in self._held.pop(key):
                block.end_s = cluster.now
        for key, nodes in there.items():
            if key not in self._held:
                self._open(key, nodes, cluster.now)

    def _open(self, key: tuple[str, int, str], nodes: Sequence[str], now: float) -> None:
        counts = Counter(nodes)
        self._held[key] = [Block(key[0], node, n * self.gpus[key[0]], now) for node, n in sorted(counts.items())]
        self.blocks += self._held[key]

    def _only(self, what: str, spans: list[Span], names: Iterable[str], now: float) -> None:
        """``what`` is so of ``names``, and of no others."""
        now_so = set(names)
        for kind, name in [key for key in self._spans if key[0] == what and key[1] not in now_so]:
            self._end(kind, name, now)
        for name in sorted(now_so):
            self._begin(what, spans, name, now)

    def _begin(self, what: str, spans: list[Span], name: str, now: float) -> None:
        if (what, name) not in self._spans:
            self._spans[what, name] = Span(name, now)
            spans.append(self._spans[what, name])

    def _end(self, what: str, name: str, now: float) -> None:
        if span := self._spans.pop((what, name), None):
            span.end_s = now
