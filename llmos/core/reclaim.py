"""Which jobs end so that a service gets room that it owns.

Jobs that can go on smaller end before others, of them those first to which being larger is worth least; then those that
lose the least work, and none more than needed. A job that may be preempted goes on when the service has what it wants;
one that may not keeps its fewest workers' room.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llmos.core.free import Matrix
from llmos.core.goodput import worth
from llmos.core.resize import after, fewest, fits_any, stopped
from llmos.core.room import Claim
from llmos.core.running import Running
from llmos.core.shape import Shapes
from llmos.core.types import Action, Gang


def reclaimed(running: Sequence[Running], free: Matrix, claim: Claim, shapes: Shapes, now: float) -> list[Action]:
    """STOPs that make room for as many of the ``claim.owned`` replicas as there can be room for.

    None where what is ending already is enough for so many.
    """
    candidates = sorted(filter(_may_end, running), key=partial(_loss, now=now))
    (gang,) = claim.gangs
    for count in range(claim.owned if len(gang.bundles) == 1 else 1, 0, -1):
        all_of_them = gang if count == 1 else Gang(gang.bundles * count, labels=gang.labels)
        enough = partial(_enough, all_of_them, running, free, claim, shapes)
        if enough(candidates):
            return [stopped(one, _why(one, claim, now)) for one in fewest(candidates, enough)]
    return []


def _enough(
    wanted: Gang, running: Sequence[Running], free: Matrix, claim: Claim, shapes: Shapes, victims: Sequence[Running]
) -> bool:
    """Whether there is room for ``wanted`` once ``victims`` have ended."""
    return fits_any([shapes(wanted)], after(running, free, victims, claim, shapes))


def _may_end(one: Running) -> bool:
    return (one.job.preemptible or one.shrinkable) and not (one.ending or one.job.cancelled)


def _loss(one: Running, now: float) -> tuple[bool, float, float, float, str]:
    """Orders those that may end: who loses least comes first."""
    size = worth(one.job, len(one.nodes)) if one.shrinkable else 0.0
    return not one.shrinkable, size, one.gpus * one.lost_s(now), one.lost_s(now), one.job.id


def _why(one: Running, claim: Claim, now: float) -> str:
    lost = f"{one.lost_s(now):.0f} s of work" + (f" on {one.gpus:g} GPUs" if one.gpus else "")
    return f"gives back what {claim.who} has lent: loses {lost}"
