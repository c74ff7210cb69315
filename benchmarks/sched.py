"""The scheduler: every number we claim, beside others.

    python -m benchmarks.sched [--quick] [--json] [--data DIR] [--only ROW …] [--merge FILE]

Everything runs in the twin, on one core. References were published by others, on their machines; the rows say so.
"""

from __future__ import annotations

import sys

from benchmarks.rows import Row, Target, main

_PAPER = "FGD paper's files: Random 87.47, BestFit 93.08, FGD 95.39"
_TICK = "published: KAI 3-4 min at 1,000 nodes; Ray's autoscaler 88.9 s at 9,838 bundles"
_SIZES = "FIFO + backfill, SRTF by the same estimates"
_SPLIT = "two clusters of equal total size"


def _row(name: str, module: str, unit: str, peer: str, *targets: Target) -> Row:
    return Row(name, f"benchmarks.{module}:{name}", unit, peer, targets)


def _near(policy: str, published: float) -> Target:
    return Target(policy, least=published - 0.5, most=published + 0.5)


ROWS = (
    _row(
        "openb_130",
        "openb_row",
        "% of GPUs allocated",
        _PAPER,
        Target("gain", least=0, note="ours - our FGD"),
        _near("random", 87.47),
        _near("bestfit", 93.08),
        _near("fgd", 95.39),
    ),
    _row("tick_warm", "tick_rows", "ms", _TICK, Target("value", most=150)),
    _row("tick_cold", "tick_rows", "s", _TICK, Target("value", most=2)),
    _row("admit_per_s", "admit_row", "jobs/s", "Kueue CI 42/s", Target("value", least=500)),
    _row(
        "jobs_jct",
        "job_rows",
        "s, mean JCT",
        _SIZES,
        Target("ratio", most=1, note="ours / best of the others"),
        Target("p99_ratio", most=1),
        Target("wall_s", most=60),
    ),
    _row(
        "lending",
        "lending_row",
        "% more training goodput",
        _SPLIT,
        Target("value", least=25),
        Target("attained_gain", least=0, note="points of requests in time"),
    ),
    _row("eta_p90", "job_rows", "% of starts", "none", Target("value", least=85, most=95)),
)

if __name__ == "__main__":
    sys.exit(main("sched", ROWS))
