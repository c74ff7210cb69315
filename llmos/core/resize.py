"""Which running attempts end so that their jobs go on elsewhere, smaller or larger.

An attempt never changes while it runs: it is asked to checkpoint and yield, and the next one starts on what there is
then. So a resize is a STOP, and how large the next attempt becomes is decided like that of every other.

Three reasons, in this order. A node is about to go: its jobs move. The first in the queue has no room: of the jobs
that run on more than their fewest workers, those to which that is worth least give up what is needed, the youngest
first among equals, if that is enough. Nobody waits and there is room: the oldest job that gains enough by it grows
(``goodput``). That needs patience (``Job.grow_every_s``), so that jobs which come and go do not drag others along, and
one at a time, so that two do not hope for the same room.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from llmos.core import reasons
from llmos.core.free import Columns, Matrix, added
from llmos.core.goodput import best_first, pays, worth
from llmos.core.room import Claim
from llmos.core.running import Running, oldest_first
from llmos.core.shape import Shape, Shapes
from llmos.core.types import Action, AttemptPhase, Gang, Job, Verb


def moved(running: Iterable[Running], leaving: Collection[str]) -> Iterator[Action]:
    """STOPs of attempts on nodes that are ``leaving``."""
    if leaving:
        for one in oldest_first(running):
            going = sorted(node for node in set(one.nodes) if node in leaving)
            if going and not one.ending:
                yield stopped(one, f"moves: node {going[0]} is about to go")


def shrunk(running: Sequence[Running], free: Matrix, claim: Claim, shapes: Shapes) -> list[Action]:
    """STOPs that make room for ``claim``. None if that would not be enough.

    ``free`` is what is free now. Attempts that are ending already are counted as if they had ended.
    """
    wanted = [shapes(gang) for gang in claim.gangs]

    def enough(victims: Sequence[Running]) -> bool:
        return fits_any(wanted, after(running, free, victims, claim, shapes))

    youngest_first = oldest_first(one for one in running if one.shrinkable)[::-1]
    least_first = sorted(youngest_first, key=lambda one: worth(one.job, len(one.nodes)))
    if not least_first:
        return []
    if not fits_any(wanted, added([one.held for one in (*least_first, *_ending(running))], free)):
        return []
    victims = fewest(least_first, enough)
    size = reasons.workers
    return [stopped(one, f"shrinks from {size(len(one.nodes))}: room for {claim.who}") for one in victims]


def grown(running: Sequence[Running], free: Matrix, now: float, shapes: Shapes) -> Iterator[tuple[Running, Gang]]:
    """The attempts that gain by going on larger, the oldest first, and as what. To be asked when nobody waits."""
    elastic = [one for one in running if one.job.larger]
    if not elastic or any(one.ending for one in running):
        return
    for one in oldest_first(elastic):
        settled = one.attempt.phase is AttemptPhase.RUNNING and now - one.job.opened_at >= one.job.grow_every_s
        if settled and (better := _better(one, now)):
            room = added([one.held], free)
            if found := _first(better, room, shapes):
                yield one, found[0]


def grow(one: Running, gang: Gang) -> Action:
    """The STOP after which ``one`` goes on as ``gang``."""
    return stopped(one, f"grows from {reasons.workers(len(one.nodes))} to {len(gang.bundles)}: there is room")


def smallest(job: Job, free: Matrix, shapes: Shapes) -> tuple[Gang, Columns] | None:
    """The smallest gang of ``job`` that fits, and where."""
    return _first(job.gangs, free, shapes)


def fewest(candidates: Sequence[Running], enough: Callable[[Sequence[Running]], bool]) -> list[Running]:
    """Those of ``candidates`` whose end is ``enough``, the first ones for choice, and none that is not needed.

    Empty when all of them are not enough, or none is needed.
    """
    low, high = 0, 1
    if enough(()):
        return []
    while not enough(candidates[:high]):
        if high >= len(candidates):
            return []
        low, high = high, min(2 * high, len(candidates))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(candidates[:middle]) else (middle, high)
    return _none_spared(list(candidates[:high]), enough)


def _none_spared(victims: list[Running], enough: Callable[[Sequence[Running]], bool]) -> list[Running]:
    """``victims``, of which the last is needed, without those that are not: many at a time, then one by one."""
    some = max(len(victims) // 2, 1)
    while some:
        end = len(victims) - 1
        while end > 0:
            start = max(end - some, 0)
            if enough(rest := victims[:start] + victims[end:]):
                victims = rest
            end = start
        some //= 2
    return victims


def after(running: Sequence[Running], free: Matrix, victims: Iterable[Running], claim: Claim, shapes: Shapes) -> Matrix:
    """What is free once the ``victims`` and what is ending already have ended.

    Those that come before ``claim`` then go on, as small as they can; those of a lower priority go on after it, as do
    all that may be preempted if it is for what is a service's own.
    """
    gone = {one.job.id: one for one in (*_ending(running), *victims)}
    left = added([one.held for one in gone.values()], free)
    for one in oldest_first(gone.values()):
        lower = claim.priority is not None and one.job.priority < claim.priority
        later = one.job.preemptible if claim.owned else lower
        if not one.job.cancelled and not later and (found := smallest(one.job, left, shapes)):
            shapes(found[0]).held(found[1]).take(left)
    return left


def fits_any(wanted: Iterable[Shape], free: Matrix) -> bool:
    """Whether there is room for one of ``wanted``."""
    return any(shape.fits_in(free) for shape in wanted)


def stopped(one: Running, why: str) -> Action:
    """The STOP of ``one``."""
    return Action(Verb.STOP, one.job.id, one.attempt.number, why=why)


def _ending(running: Iterable[Running]) -> list[Running]:
    return [one for one in running if one.ending]


def _first(gangs: Iterable[Gang], free: Matrix, shapes: Shapes) -> tuple[Gang, Columns] | None:
    placed = ((gang, shapes(gang).place(free)) for gang in gangs)
    return next(((gang, columns) for gang, columns in placed if columns is not None), None)


def _better(one: Running, now: float) -> list[Gang]:
    """The larger gangs that ``one`` gains by, the best first."""
    size, left = len(one.nodes), one.job.opened_at + one.left - now
    larger = (gang for gang in best_first(one.job) if len(gang.bundles) > size)
    return [gang for gang in larger if pays(one.job, size, len(gang.bundles), left)]
