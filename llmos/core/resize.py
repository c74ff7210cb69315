"""Which running attempts end so that their jobs go on elsewhere, smaller or larger.

An attempt never changes while it runs: it is asked to checkpoint and yield, and the next one starts on what there is
then. So a resize is a STOP, and how large the next attempt becomes is decided like that of every other.

Three reasons, in this order. A node is about to go: its jobs move. The first in the queue has no room: of the jobs that
run on more than their fewest workers, the youngest give up what is needed, if that is enough. Nobody waits and there is
room: the oldest job that could use it grows. That needs patience (``Job.grow_every_s``), so that jobs which come and go
do not drag others along, and one at a time, so that two do not hope for the same room.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llmos.core import reasons
from llmos.core.placement import occupy, place, vacate
from llmos.core.types import Action, Attempt, AttemptPhase, Gang, Job, Resources, Verb

Free = Mapping[str, Resources]


@dataclass(frozen=True, slots=True)
class Running:
    """A job with its living attempt, which holds ``nodes``."""

    job: Job
    attempt: Attempt
    nodes: tuple[str, ...]

    @property
    def gang(self) -> Gang:
        return self.job.gang_on(self.nodes)

    @property
    def ending(self) -> bool:
        return self.attempt.stopping_since is not None

    def asked(self, now: float) -> Running:
        """The same once it was asked to end."""
        return self if self.ending else replace(self, attempt=replace(self.attempt, stopping_since=now))

    @property
    def shrinkable(self) -> bool:
        return len(self.nodes) > len(self.job.gang.bundles) and not self.ending


def moved(running: Sequence[Running], leaving: Collection[str]) -> Iterator[Action]:
    """STOPs of attempts on nodes that are ``leaving``."""
    for one in running:
        going = sorted(node for node in set(one.nodes) if node in leaving)
        if going and not one.ending:
            yield _stop(one, f"moves: node {going[0]} is about to go")


def shrunk(running: Sequence[Running], free: Free, who: str, wanted: Sequence[Gang]) -> list[Action]:
    """STOPs that make room for ``who``, which waits for room for one of ``wanted``. None if that would not be enough.

    ``free`` is what is free now. Attempts that are ending already are counted as if they had ended.
    """
    ending = {one.job.id for one in running if one.ending}

    def enough(victims: Sequence[Running]) -> bool:
        later = _after(running, free, ending | {one.job.id for one in victims})
        return any(place(gang, later) for gang in wanted)

    victims: list[Running] = []
    youngest_first = sorted((one for one in running if one.shrinkable), key=_age)[::-1]
    for one in [None, *youngest_first]:
        victims += [one] if one else []
        if enough(victims):
            break
    else:
        return []
    for one in victims[:-1]:
        if enough(rest := [other for other in victims if other is not one]):
            victims = rest
    return [_stop(one, f"shrinks from {reasons.workers(len(one.nodes))}: room for {who}") for one in victims]


def grown(running: Sequence[Running], free: Free, now: float) -> list[Action]:
    """The STOP of the first attempt that could go on larger, if there is one. To be asked when nobody waits."""
    if any(one.ending for one in running):
        return []
    for one in sorted(running, key=_age):
        settled = one.attempt.phase is AttemptPhase.RUNNING and now - one.job.opened_at >= one.job.grow_every_s
        larger = largest(one.job, _without(one, free)) if settled else None
        if larger and len(larger) > len(one.nodes):
            return [_stop(one, f"grows from {reasons.workers(len(one.nodes))} to {len(larger)}: there is room")]
    return []


def largest(job: Job, free: Free) -> tuple[str, ...] | None:
    """Where the largest gang of ``job`` that fits can go."""
    return next(filter(None, (place(gang, free) for gang in reversed(job.gangs))), None)


def smallest(job: Job, free: Free) -> tuple[str, ...] | None:
    """Where the smallest gang of ``job`` that fits can go."""
    return next(filter(None, (place(gang, free) for gang in job.gangs)), None)


def _after(running: Sequence[Running], free: Free, ending: set[str]) -> Free:
    """What is free once the jobs ``ending`` have ended, and gone on as small as they can where they are to go on."""
    left = dict(free)
    for one in running:
        if one.job.id in ending:
            vacate(left, one.gang, one.nodes)
    for one in running:
        if one.job.id in ending and not one.job.cancelled and (nodes := smallest(one.job, left)):
            occupy(left, one.job.gang_on(nodes), nodes)
    return left


def _without(one: Running, free: Free) -> Free:
    left = dict(free)
    vacate(left, one.gang, one.nodes)
    return left


def _age(one: Running) -> tuple[float, str]:
    return one.job.submitted_at, one.job.id


def _stop(one: Running, why: str) -> Action:
    return Action(Verb.STOP, one.job.id, one.attempt.number, why=why)
