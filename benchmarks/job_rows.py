"""``jobs_jct`` and ``eta_p90``: 80,000 jobs of four months on 64 nodes of 8 GPUs, under ours and other policies.

The trace is made up (``llmos/sim/job_traces.py`` says how). All policies but the bound know the same estimates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache

from benchmarks.rows import Measured, Options, Unmeasured
from llmos.sim import SCHEDULING
from llmos.sim.job_report import report
from llmos.sim.job_traces import DAYS, GPUS, JOBS, generate
from llmos.sim.scheduling import schedule

SEED, PER_NODE, QUICK = 0, 8, 10
Figures = Mapping[str, float | None]


def jobs_jct(options: Options) -> Measured:
    """Mean seconds from submission to end, ours beside the best of the others; the bound is in ``also``."""
    found = {name: _replayed(name, options.quick) for name in SCHEDULING}
    others = [name for name in found if name not in ("llmos", "bound")]
    mean, p99 = _figures(found, "jct_s_mean"), _figures(found, "jct_s_p99")
    best, best_p99 = min(others, key=mean.__getitem__), min(others, key=p99.__getitem__)
    said = ", ".join(f"{name} {mean[name]:.0f} / {p99[name]:.0f}" for name in found)
    also = {
        "p99": p99["llmos"],
        "p99_ratio": p99["llmos"] / p99[best_p99],
        "bound": mean["bound"],
        "wall_s": found["llmos"]["wall_s"] or 0.0,
        **{f"{name}_mean": mean[name] for name in others},
        **{f"{name}_p99": p99[name] for name in others},
    }
    return Measured(mean["llmos"], mean[best], mean["llmos"] / mean[best], f"mean / p99: {said}", best, also)


def eta_p90(options: Options) -> Measured:
    """Per cent of the jobs that had to wait and began before the time that was said for nine in ten."""
    found = _replayed("llmos", options.quick)
    kept, of = found["p90_calibration_pct"], found["p90_estimates"]
    if kept is None:
        raise Unmeasured("not measured: the plan estimated no starts")
    return Measured(kept, why=f"of {of:.0f} jobs that waited with an estimate")


@lru_cache
def _replayed(policy: str, quick: bool) -> Figures:
    """The report of one policy. Both rows read the same one of ours."""
    part = QUICK if quick else 1
    jobs = generate(SEED, jobs=JOBS // part, days=DAYS / part)
    began = time.perf_counter()
    runs, world = schedule(jobs, policy, GPUS, PER_NODE)
    return report(runs, world) | {"wall_s": time.perf_counter() - began}


def _figures(found: Mapping[str, Figures], name: str) -> dict[str, float]:
    return {policy: of[name] or 0.0 for policy, of in found.items()}
