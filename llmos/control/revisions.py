"""How a service goes from one revision to the next: which of them have replicas, and which get the requests.

A revision is what replicas run. Where there is room for both, the new one is brought up beside the old one, gets the
requests when it is whole, and the old one stays warm for a while: a rollback is then a matter of a moment. Where there
is no room, the old one gives up one replica after another. A revision that never answers never gets a request.

Pure: what is seen comes in, what is wanted goes out, and :class:`Memory` is handed from one decision to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

PATIENCE_S = 10.0
"""So long there has to be no room before a replica is given up: what starts holds its room before it is seen there."""
LINGER_S = 2.0
"""So long replicas stay after their requests went elsewhere: the front door hears of it within half a second."""

Room = Callable[[Collection[int]], bool]
"""Whether one more replica of the current revision has room once those of the given revisions have gone."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What is wanted of a service: ``count`` replicas of the revision ``current``.

    ``before`` is the one that a rollback goes to; it stays for ``keep_s`` seconds. ``canary`` gets the share ``weight``
    of the requests.
    """

    current: int
    count: int
    before: int | None = None
    canary: int | None = None
    weight: float = 0.0
    keep_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One deployed revision: replicas that it was told to have, that have their place, and that answer."""

    target: int
    placed: int
    ready: int
    removing: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """``serving`` is the revision that has the requests, since ``moved_at``; 0: none yet. ``stuck_at`` is since when
    its successor has had no room. ``asked`` is when each revision last got requests."""

    serving: int = 0
    moved_at: float = -math.inf
    stuck_at: float = math.inf
    asked: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rollout:
    """Replicas by revision, without those that have none; shares of the requests by revision, which sum to 1 unless
    nobody answers; and what people are told while one revision replaces another."""

    replicas: Mapping[int, int]
    weights: Mapping[int, float]
    memory: Memory = field(default_factory=Memory)
    why: str = ""


def rollout(aim: Aim, seen: Mapping[int, Seen], room: Room, memory: Memory, now: float) -> Rollout:
    """What to have now, and who gets the requests. To be asked again whenever ``seen`` or ``aim`` changes."""
    there = {revision: one for revision, one in seen.items() if not one.removing}
    memory = _moved(aim, there, memory, now)
    replicas, why = {aim.current: aim.count, **_canary(aim)}, ""
    old = there.get(memory.serving) if memory.serving != aim.current else None
    if old:
        memory, kept = _during(aim, there, room, memory, now)
        replicas[memory.serving] = max(kept, replicas.get(memory.serving, 0))
        ready = there[aim.current].ready if aim.current in there else 0
        why = f"revision {aim.current} replaces {memory.serving}: {ready} of its {aim.count} replicas answer"
    elif aim.before in there and aim.count and now - memory.moved_at < aim.keep_s:
        replicas = {aim.before: there[aim.before].target} | replicas
    lingering = {revision: there[revision].target for revision in memory.asked if revision in there}
    shares = _shares(aim, there, replicas, memory)
    if not shares and aim.count:  # rather one that is about to go than nobody
        shares = _shares(aim, there, lingering | replicas, memory)
    asked = {revision: at for revision, at in memory.asked.items() if now - at < LINGER_S} | dict.fromkeys(shares, now)
    lingering = {revision: there[revision].target for revision in asked if revision in there}
    wanted = {revision: count for revision, count in (lingering | replicas).items() if count}
    return Rollout(wanted, shares, replace(memory, asked=asked), why)


def _canary(aim: Aim) -> dict[int, int]:
    """As many replicas as the canary's share of the requests needs."""
    if aim.canary is None or aim.canary == aim.current or not aim.count:
        return {}
    return {aim.canary: math.ceil(aim.count * aim.weight)}


def _moved(aim: Aim, there: Mapping[int, Seen], memory: Memory, now: float) -> Memory:
    """``memory`` after the requests have gone to the current revision, if it is time: it is whole, or nobody else
    answers, or it is an earlier one that is still warm, which there is a reason to go back to."""
    if memory.serving == aim.current:
        return memory
    answering = {revision for revision, one in there.items() if one.ready and revision != aim.canary}
    old = memory.serving if memory.serving in there else max(answering - {aim.current}, default=0)
    if not old or not aim.count:
        return replace(memory, serving=aim.current, moved_at=now if memory.serving else memory.moved_at)
    ready = there[aim.current].ready if aim.current in there else 0
    back = aim.current < memory.serving
    if ready and (ready >= aim.count or back or old not in answering):
        return replace(memory, serving=aim.current, moved_at=now)
    return replace(memory, serving=old)


def _during(aim: Aim, there: Mapping[int, Seen], room: Room, memory: Memory, now: float) -> tuple[Memory, int]:
    """Replicas that the revision that has the requests keeps while its successor comes."""
    old, new = there[memory.serving], there.get(aim.current)
    placed, ready = (new.placed, new.ready) if new else (0, 0)
    leaving = old.placed > old.target  # one is on its way out already
    waits = placed < aim.count and placed == ready and not leaving
    if not waits or room(()) or not room((memory.serving,)):
        return replace(memory, stuck_at=math.inf), old.target
    if not old.ready:
        return memory, 0
    since = min(memory.stuck_at, now)
    if new is not None and now - since < PATIENCE_S:
        return replace(memory, stuck_at=since), old.target
    return replace(memory, stuck_at=math.inf), max(old.target - 1, 0)


def _shares(aim: Aim, there: Mapping[int, Seen], replicas: Mapping[int, int], memory: Memory) -> dict[int, float]:
    """Shares of the requests: only revisions that answer and that stay get any."""
    ready = {revision: one.ready for revision, one in there.items() if one.ready and replicas.get(revision)}
    main = _main(aim, ready, replicas, memory)
    if aim.canary is None or aim.canary not in ready or aim.canary in main:
        return main
    share = aim.weight if main else 1.0
    return {revision: part * (1 - share) for revision, part in main.items()} | {aim.canary: share}


def _main(aim: Aim, ready: Mapping[int, int], replicas: Mapping[int, int], memory: Memory) -> dict[int, float]:
    """Shares of what the canary does not get."""
    if memory.serving in ready:
        new = ready.get(aim.current, 0)
        if memory.serving == aim.current or not new or replicas[memory.serving] >= aim.count:
            return {memory.serving: 1.0}
        old = min(ready[memory.serving], replicas[memory.serving])  # each replica gets as much as any other
        return {memory.serving: old / (old + new), aim.current: new / (old + new)}
    others = [revision for revision in (aim.current, aim.before, *sorted(ready, reverse=True)) if revision in ready]
    return {others[0]: 1.0} if others and others[0] is not None else {}
