"""Which running jobs go on elsewhere so that free room comes together.

Small jobs come and go, and leave holes on many nodes. Together they are enough for a gang that needs whole nodes, but
it would wait until one is empty by chance. If the order is shortest first, small jobs end for it, checkpoint, and go on
at once in the holes: on as few nodes as it needs, those with most free, and only if all of them find room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmos.core.free import GPU, Matrix, added
from llmos.core.resize import fewest, stopped
from llmos.core.room import Claim
from llmos.core.running import Running, expected_s
from llmos.core.shape import Shape, Shapes
from llmos.core.types import Action, Order

SETTLED_S = 600.0
"""A job is left alone for so long after its start."""
MOVES_S = 600.0
"""One that is expected to end within that time is waited for."""
SPARE = 4
"""So many nodes more than the gang has bundles are looked at."""


def gathered(running: Sequence[Running], free: Matrix, claim: Claim, shapes: Shapes, now: float) -> list[Action]:
    """STOPs that make room for ``claim``. None if that would not be enough, or it takes only patience."""
    if claim.order is Order.FIFO or claim.priority is None:
        return []
    shape = shapes(claim.gangs[0])
    soon = added([one.held for one in running if one.ending], free)
    left = np.maximum(soon, 0.0).sum(axis=1)
    if (left + shapes.grid.tolerance < shape.total).any() or shape.fits_in(soon):
        return []

    def enough(some: Sequence[Running]) -> bool:
        later = added([one.held for one in some], soon)
        needed = [shape, *(shapes(one.gang) for one in sorted(some, key=_size, reverse=True))]
        return all(_put(one, later) for one in needed)

    candidates = list(_candidates(running, soon, shape, now))
    why = f"moves: room for {claim.who} comes together"
    return [stopped(one, why) for one in fewest(candidates, enough)]


def _candidates(running: Sequence[Running], soon: Matrix, shape: Shape, now: float) -> Iterator[Running]:
    """Those that could go elsewhere, by node, that with most free first."""
    settled = [one for one in running if len(one.held.columns) == 1 and _settled(one, now)]
    if not settled:
        return
    hosts = shape.hosts(added([one.held for one in settled], soon))
    first = hosts[np.lexsort((hosts, -soon[GPU, hosts]))][: len(shape.gang.bundles) + SPARE]
    rank = {column: place for place, column in enumerate(first.tolist())}
    on = [(rank[column], _size(one), one) for one in settled if (column := int(one.held.columns[0])) in rank]
    yield from (one for _, _, one in sorted(on, key=lambda entry: entry[:2]))


def _settled(one: Running, now: float) -> bool:
    """Whether ``one`` may be moved, and is worth it: it has begun long ago and is not about to end."""
    job, ran_s = one.job, now - one.job.opened_at
    if not job.preemptible or job.cancelled or one.ending or ran_s < SETTLED_S:
        return False
    return expected_s(job, job.run_s + ran_s) > MOVES_S


def _put(shape: Shape, free: Matrix) -> bool:
    """Place ``shape`` and take what it needs from ``free``, if there is room."""
    columns = shape.place(free)
    if columns is None:
        return False
    shape.held(columns).take(free)
    return True


def _size(one: Running) -> tuple[float, str]:
    return one.gpus, one.job.id
