"""The processor cores that this process may use, where the system says so (Linux), else all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable


def usable_cores() -> list[int]:
    """Their numbers, in order: fewer than the machine has in a container, or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def keep_to(cores: Iterable[int]) -> None:
    """Run on ``cores`` only, from now on and in threads begun later; where the system cannot, nothing changes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
