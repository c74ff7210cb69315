"""How long steps and collectives may take. PURE, and without torch: whoever starts ranks asks too."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

AUTO_FACTOR, AUTO_LEAST_S, AUTO_MOST_S = 20.0, 600.0, 7200.0
"""Of ``timeout: auto``: so many median steps, at least so long (storage that stalls, kernels compiled once more), at
most so long."""
AUTO_FIRST_S = 1800.0
"""Before _KNOWN steps have ended: kernels are compiled, caches and links are cold."""
_KNOWN = 3
MARGIN_S = 300.0
"""How much longer a collective may take than a step: it must not fail before the watchdog has looked."""


def step_limit_s(timeout: float | str, steps_s: Sequence[float]) -> float:
    """How long no step may end, with ``watchdog.timeout``, after steps that took ``steps_s``."""
    if isinstance(timeout, float):
        return timeout
    if len(steps_s) < _KNOWN:
        return AUTO_FIRST_S
    return min(max(AUTO_LEAST_S, AUTO_FACTOR * statistics.median(steps_s)), AUTO_MOST_S)


def collective_timeout_s(timeout: float | str) -> float:
    """How long a collective may take, with ``watchdog.timeout``: longer than that waits.

    Before the first step nothing is watched, and ranks wait for rank 0, which may be preparing a corpus.
    """
    return max(AUTO_MOST_S, timeout if isinstance(timeout, float) else 0.0) + MARGIN_S
