"""What another size is worth to an elastic job.

Goodput is useful work per second: throughput times statistical efficiency (Pollux, Qiao et al., OSDI 2021). Sizes that
were not measured are taken from the nearest measured ones: in between by interpolation, beyond them in proportion.
"""

from __future__ import annotations

import math

from llmos.core.types import Gang, Job

MARGIN = 2.0
"""A resize must gain so many times what it costs: estimates are rough, and what comes next may undo it."""
LOOK_AHEAD_S = 3600.0
"""A job of which nothing is known, or that should have ended, is taken to run for so long."""


def goodput(job: Job, size: int) -> float:
    """Useful work per second on ``size`` bundles, relative to that on one where nothing was measured."""
    known = sorted(job.goodput)
    if not known:
        return float(size)
    below = [point for point in known if point[0] <= size]
    above = [point for point in known if point[0] >= size]
    if not (below and above):
        nearest, value = below[-1] if below else above[0]
        return value * size / nearest
    (low, less), (high, more) = below[-1], above[0]
    return less if low == high else less + (more - less) * (size - low) / (high - low)


def best_first(job: Job) -> list[Gang]:
    """The gangs of ``job``, that with most goodput first; of equal ones the smaller."""
    return sorted(job.gangs, key=lambda gang: (-goodput(job, len(gang.bundles)), len(gang.bundles)))


def worth(job: Job, size: int) -> float:
    """What each bundle beyond the fewest adds to ``job`` on ``size`` bundles, as a part of what each of the fewest
    does: 1 where throughput grows in proportion, or nothing was measured; 0 where more bundles do not help."""
    fewest = len(job.gang.bundles)
    least = goodput(job, fewest) / fewest
    if size <= fewest or least <= 0:
        return 1.0
    return (goodput(job, size) / least - fewest) / (size - fewest)


def pays(job: Job, size: int, other: int, left_s: float) -> bool:
    """Whether ``job``, which on ``size`` bundles has ``left_s`` to run, gains enough by going on with ``other``."""
    ahead = left_s if 0 < left_s < math.inf else LOOK_AHEAD_S
    now, then = goodput(job, size), goodput(job, other)
    return then > now and ahead * (1 - now / then) > MARGIN * job.resize_s
