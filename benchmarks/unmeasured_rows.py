"""Rows of the scheduler that cannot be measured yet, and what they need."""

from __future__ import annotations

from benchmarks.rows import Measured, Options, Unmeasured


def admit_per_s(options: Options) -> Measured:
    """Raises Unmeasured."""
    raise Unmeasured(f"not measured{_quick(options)}: the twin does not drive the durable store yet")


def lending(options: Options) -> Measured:
    """Raises Unmeasured."""
    raise Unmeasured(f"not measured{_quick(options)}: services do not lend their GPUs yet")


def _quick(options: Options) -> str:
    return " (quick)" if options.quick else ""
