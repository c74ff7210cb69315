"""How many threads a step gets: as many as make it fastest here and now, which is not the number of cores.

Where other work runs, or the memory is saturated, more threads wait for one another and the step takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from llmos.cores import usable_cores

REPEATS = 5
WORTH = 0.97
"""More threads must take at most this share of the time of fewer."""


def fastest(run: Callable[[int], object], counts: Sequence[int]) -> tuple[int, dict[int, float]]:
    """Which of ``counts`` (ascending) makes ``run(threads)`` fastest, and each one's seconds.

    Each is tried REPEATS times after a first that warms up, all in turn, so that what else the machine does meets all
    of them; the median counts.
    """
    times: dict[int, list[float]] = {count: [] for count in counts}
    for repeat in range(REPEATS + 1):
        for count in counts:
            began = time.perf_counter()
            run(count)
            if repeat:
                times[count].append(time.perf_counter() - began)
    typical = {count: sorted(seconds)[REPEATS // 2] for count, seconds in times.items()}
    best = counts[0]
    for count in counts[1:]:
        if typical[count] < WORTH * typical[best]:
            best = count
    return best, typical


def candidates() -> list[int]:
    """1, 2, 4, … and all of the cores that this process may use."""
    cores = len(usable_cores())
    counts = [1]
    while counts[-1] * 2 < cores:
        counts.append(counts[-1] * 2)
    return [*counts, cores] if cores > 1 else counts
