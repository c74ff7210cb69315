"""Which running jobs end so that one of a higher priority can start.

Whole jobs, only of a lower priority, those that lose the least work (time since the last committed checkpoint ×
GPUs), and none more than needed. An ended job goes back to the head of its queue. A tenant that has less than the one
that waits, once its job has ended, keeps it: it would come first again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmos.core.free import Matrix, added
from llmos.core.resize import after, fewest, fits_any, stopped
from llmos.core.room import Claim
from llmos.core.running import Running
from llmos.core.shape import Shapes
from llmos.core.tenants import Account, Ledger
from llmos.core.types import Action


def preempted(
    running: Sequence[Running], free: Matrix, claim: Claim, shapes: Shapes, ledger: Ledger, now: float
) -> list[Action]:
    """STOPs that make room for ``claim``. None if that would not be enough, or it takes only patience."""
    if claim.priority is None:
        return []
    candidates = list(_candidates(running, claim, ledger, now))
    if not candidates:
        return []
    wanted = [shapes(gang) for gang in claim.gangs]
    ending = [one.held for one in running if one.ending]
    if not fits_any(wanted, added([*ending, *(one.held for one in candidates)], free)):
        return []
    victims = fewest(candidates, lambda some: fits_any(wanted, after(running, free, some, claim, shapes)))
    return [stopped(one, _why(one, claim, now)) for one in victims]


def _candidates(running: Sequence[Running], claim: Claim, ledger: Ledger, now: float) -> Iterator[Running]:
    """Those that may end for ``claim``, those that lose least first."""
    priority = claim.priority or 0
    below = [one for one in running if one.job.priority < priority]
    lower = [one for one in below if one.job.preemptible and not (one.ending or one.job.cancelled)]
    if not lower:
        return
    mine = ledger.account(claim.tenant)
    given_back: dict[str, list[float]] = {}
    for one in sorted(lower, key=lambda one: (one.gpus * one.lost_s(now), one.lost_s(now), one.job.id)):
        held = list(one.total)
        if _stays_behind(mine, ledger.account(one.job.tenant), held, given_back, ledger):
            yield one


def _stays_behind(
    mine: Account, theirs: Account, held: list[float], given_back: dict[str, list[float]], ledger: Ledger
) -> bool:
    """Whether ``mine`` still has its turn before ``theirs`` when that has given back ``held``, too.

    ``given_back`` is what others before have given back, by account; if so, ``held`` is added to it.
    """
    above_mine, above_theirs = list(mine.path)[::-1], list(theirs.path)[::-1]
    depth = next((i for i, (a, b) in enumerate(zip(above_mine, above_theirs, strict=False)) if a is not b), None)
    changed = {one.id: [a + b for a, b in zip(given_back.get(one.id, [0.0] * len(held)), held, strict=True)]
               for one in above_theirs}  # fmt: skip
    if depth is not None:
        one, other = above_mine[depth], above_theirs[depth]
        has = [h + u - g for h, u, g in zip(other.held, other.used, changed[other.id], strict=True)]
        lost = given_back.get(one.id, [0.0] * len(held))
        have = [h + u - g for h, u, g in zip(one.held, one.used, lost, strict=True)]
        if (ledger.share(have, one), one.id) > (ledger.share(has, other), other.id):
            return False
    elif mine is not theirs:
        return False  # one is above the other: they take turns as siblings do, whose shares are not told apart here
    given_back.update(changed)
    return True


def _why(one: Running, claim: Claim, now: float) -> str:
    lost = f"{one.lost_s(now):.0f} s of work" + (f" on {one.gpus:g} GPUs" if one.gpus else "")
    return f"preempted: room for {claim.who} (priority {claim.priority}, this has {one.job.priority}); loses {lost}"
