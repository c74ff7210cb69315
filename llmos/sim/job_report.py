"""What came of a replay of jobs, in numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np
import numpy.typing as npt

from llmos.sim.job_replay import Run, World


def report(runs: Sequence[Run], world: World) -> dict[str, float | None]:
    """Seconds, per cents and counts; None where there is nothing to count.

    ``jct`` is the time from a job's submission to its end, ``queued`` that in which it did not run. Utilisation is the
    share of all GPU time between the first submission and the last end; fragmentation that which lies idle while
    somebody waits. ``lost_gpu_h`` is what starting again took of those that were preempted or failed, and the work that
    failed ones had to do again; ``given_up`` counts those that failed too often. ``fairness`` is Jain's index (Jain,
    Chiu and Hawe, DEC-TR-301, 1984) over the tenants' mean share of its time in which a job runs: 1 for equal ones.
    ``p90_calibration_pct`` is how many of the jobs that had to wait started before the time that was said to be met
    with 90 % probability.
    """
    ended = [run for run in runs if run.ended_s is not None]
    jct_s = np.array([(run.ended_s or 0.0) - run.job.submitted_s for run in ended])
    queued_s = jct_s - np.array([run.job.run_s for run in ended])
    span_s = world.now - min((run.job.submitted_s for run in runs), default=world.now)
    whole = world.pool.total * span_s
    promised = [run for run in ended if run.promised_s is not None and run.begun_s is not None]
    kept = [(run.begun_s or 0.0) <= (run.promised_s or 0.0) for run in promised]
    return {
        "jobs": len(ended),
        **_spread("jct_s", jct_s),
        **_spread("queued_s", queued_s),
        "utilisation_pct": _pct(world.used_gpu_s, whole),
        "fragmentation_pct": _pct(world.idle_gpu_s, whole),
        "fairness": jain(_service(ended)),
        "preemptions": world.preemptions,
        "failures": world.failures,
        "given_up": world.given_up,
        "lost_gpu_h": world.lost_gpu_s / 3600,
        "p90_calibration_pct": _pct(sum(kept), len(kept)),
        "p90_estimates": len(kept),
        "makespan_s": span_s,
    }


def jain(amounts: Iterable[float]) -> float | None:
    """Jain's index of fairness: from 1/n, one has all, to 1, all have the same. None for none."""
    x = np.array(list(amounts))
    squares = float((x**2).sum()) * len(x)
    return float(x.sum()) ** 2 / squares if squares else None


def _service(runs: Iterable[Run]) -> list[float]:
    """For each tenant the mean, over its jobs, of the share of a job's time in which it runs."""
    shares: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        took_s = (run.ended_s or 0.0) - run.job.submitted_s
        shares[run.job.tenant].append(run.job.run_s / took_s if took_s > 0 else 1.0)
    return [fmean(of_tenant) for of_tenant in shares.values()]


def _spread(name: str, values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys((f"{name}_mean", f"{name}_p50", f"{name}_p99"))
    p50, p99 = np.quantile(values, (0.5, 0.99))
    return {f"{name}_mean": float(values.mean()), f"{name}_p50": float(p50), f"{name}_p99": float(p99)}


def _pct(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None
