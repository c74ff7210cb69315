"""Traces of jobs, and what becomes of them under each policy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.core.run_times import RunTimes
from llmos.errors import DataError, UsageError
from llmos.sim import SCHEDULING
from llmos.sim.job_replay import RESTART_S, Run, World
from llmos.sim.job_report import jain, report
from llmos.sim.job_traces import DAY_S, TraceJob, generate, read_jobs
from llmos.sim.pool import Pool
from llmos.sim.scheduling import schedule


def _job(number: int, at: float, run_s: float, gpus: int, tenant: str = "a") -> TraceJob:
    return TraceJob(f"job-{number}", at, run_s, gpus, tenant, "k")


def _times(policy: str, jobs: list[TraceJob], gpus: int = 8, per_node: int = 4) -> tuple[dict[str, Run], World]:
    runs, world = schedule(jobs, policy, gpus, per_node)
    return {run.job.id: run for run in runs}, world


def test_a_trace_is_read_by_time_in_seconds_or_dates(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "timestamp,duration,num_gpus,gpu_time,cluster\n100,20,2,40,east\n1970-01-01 00:00:30,5,1,5,west\n90,1,0,0,\n"
    )
    first, second, third = read_jobs(path).rows
    assert first == TraceJob("job-0", 30.0, 5.0, 1, "west", "1")
    assert (second.submitted_s, second.tenant, second.gpus) == (90.0, "default", 0)
    assert third == TraceJob("job-2", 100.0, 20.0, 2, "east", "2")
    path.write_text("timestamp,duration,num_gpus,user,kind\n1,2,4,ada,llama\n")
    assert read_jobs(path).rows == (TraceJob("job-0", 1.0, 2.0, 4, "ada", "llama"),)


@pytest.mark.parametrize("row", ["soon,1,1,1,a", "1,-1,1,1,a", "1,1,1.5,1,a", "1,1,1,x,a", "1,1,1,1"])
def test_a_job_that_makes_no_sense_is_malformed(tmp_path: Path, row: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"timestamp,duration,num_gpus,gpu_time,cluster\n{row}\n")
    with pytest.raises(DataError, match="line 2: "):
        read_jobs(path)


def test_a_made_up_trace_has_the_sizes_the_load_and_the_days_it_says() -> None:
    jobs = generate(3, jobs=40_000, days=60, gpus=512, load=0.9)
    share = {size: count / len(jobs) for size, count in Counter(job.gpus for job in jobs).items()}
    assert share[1] == pytest.approx(0.93, abs=0.005)
    assert [share[size] for size in (2, 4, 8)] == pytest.approx([0.02] * 3, abs=0.003)
    assert sum(part for size, part in share.items() if size >= 16) == pytest.approx(0.0035, abs=0.001)
    assert sum(job.run_s * job.gpus for job in jobs) == pytest.approx(0.9 * 512 * 60 * DAY_S, rel=0.001)
    by_day = [job for job in jobs if 0.25 <= job.submitted_s / DAY_S % 1 < 0.75]
    assert len(by_day) / len(jobs) == pytest.approx(0.5 + 0.6 / np.pi, abs=0.02)
    assert [job.submitted_s for job in jobs] == sorted(job.submitted_s for job in jobs)
    assert jobs == generate(3, jobs=40_000, days=60, gpus=512, load=0.9) != generate(4, jobs=40_000, days=60)


def test_jobs_of_a_kind_take_about_as_long_as_one_another() -> None:
    kinds: dict[tuple[str, str], list[float]] = {}
    jobs = generate(5, jobs=20_000, days=30)
    for job in jobs:
        kinds.setdefault((job.tenant, job.kind), []).append(float(np.log(job.run_s)))
    within = fmean(stdev(times) for times in kinds.values() if len(times) > 20)
    assert within < 0.6 < 1.3 < stdev(np.log([job.run_s for job in jobs]).tolist())


def test_run_times_are_learned_by_kind_then_tenant_then_from_all() -> None:
    known = RunTimes()
    assert known.estimate("a", "k") is None
    for run_s in range(1, 101):
        known.add("a", "k", float(run_s))
    median_s, high_s = known.estimate("a", "k") or (0, 0)
    assert (median_s, high_s) == (69.0, 95.0)  # of the last 64: 37 to 100
    assert known.estimate("a", "other") == known.estimate("b", "k") == (median_s, high_s)
    for _ in range(3):
        known.add("b", "k", 5.0)
    assert known.estimate("b", "k") == (5.0, 5.0)


@given(sizes=st.lists(st.integers(0, 20), max_size=30), per_node=st.integers(1, 8))
def test_a_pool_gives_no_gpu_twice(sizes: list[int], per_node: int) -> None:
    pool = Pool(4, per_node)
    placed = []
    for size in sizes:
        fits = pool.fits(size)
        placement = pool.place(size)
        assert (placement is not None) == fits
        if placement is not None:
            assert sum(gpus for _, gpus in placement) == size
            assert len(placement) == -(-size // per_node)
            placed.append(placement)
        assert min(pool.free) >= 0 and pool.idle == sum(pool.free)
    for placement in placed:
        pool.give_back(placement)
    assert pool.free == [per_node] * 4


def test_fifo_waits_for_the_first() -> None:
    runs, _ = _times("fifo", [_job(0, 0, 100, 6), _job(1, 1, 10, 8), _job(2, 2, 10, 1)])
    assert [runs[f"job-{i}"].begun_s for i in range(3)] == [0, 100, 110]


def test_backfill_starts_what_does_not_delay_the_first() -> None:
    history = [_job(i, i * 1000.0, 50.0, 1) for i in range(4)]  # so that 50 s is what is known of the kind
    jobs = [*history, _job(4, 5000, 50, 6), _job(5, 5001, 50, 8), _job(6, 5002, 20, 1), _job(7, 4990, 40, 1)]
    jobs.sort(key=lambda job: job.submitted_s)
    runs, _ = _times("backfill", jobs)
    assert runs["job-5"].begun_s == 5050  # not held up by
    assert runs["job-6"].begun_s == 5050 + 50  # which would have been expected to end at 5052
    late = [*history, _job(4, 5000, 50, 6, "b"), _job(5, 5001, 50, 6), _job(6, 5002, 20, 2)]
    runs, _ = _times("backfill", late)
    assert runs["job-6"].begun_s == 5002  # beside the first, on what it will not need
    assert runs["job-5"].begun_s == 5050


def test_shortest_first_preempts_for_a_price() -> None:
    history = [TraceJob(f"s{i}", 0.0, 10.0, 1, "b", "short") for i in range(3)]
    history += [TraceJob(f"l{i}", 0.0, 5000.0, 1, "a", "long") for i in range(3)]
    long, short = TraceJob("long", 6000, 5000, 8, "a", "long"), TraceJob("short", 7000, 10, 1, "b", "short")
    runs, world = _times("srtf", [*history, long, short])
    assert runs["short"].begun_s == 7000 and world.preemptions == 1
    assert runs["long"].ended_s == pytest.approx(7010 + RESTART_S + 4000)
    assert world.lost_gpu_s == pytest.approx(8 * RESTART_S)
    runs, world = _times("bound", [*history, long, short])
    assert runs["long"].ended_s == pytest.approx(7010 + 4000) and world.lost_gpu_s == 0


@st.composite
def _traces(draw: st.DrawFn) -> list[TraceJob]:
    rows = draw(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 300), st.integers(0, 8)), max_size=25))
    ordered = sorted(rows, key=lambda row: row[0])
    return [_job(i, float(at), float(run_s), gpus, f"u{i % 3}") for i, (at, run_s, gpus) in enumerate(ordered)]


@pytest.mark.parametrize("policy", SCHEDULING)
@given(jobs=_traces())
def test_every_job_runs_for_as_long_as_it_must_and_no_gpu_twice(policy: str, jobs: list[TraceJob]) -> None:
    runs, world = schedule(jobs, policy, 8, 4)
    assert [run.job.id for run in runs] == [job.id for job in jobs]
    for run in runs:
        assert run.ended_s is not None and run.ended_s - run.job.submitted_s >= run.job.run_s - 1e-6
    held: Counter[tuple[float, int, int]] = Counter()
    for stay in (stay for stay in world.stays if stay.end_s > stay.start_s):
        for node, gpus in stay.placement:
            held[stay.start_s, 1, node] += gpus
            held[stay.end_s, 0, node] -= gpus  # ends before what starts at that time
    now = [0, 0]
    for (_, _, node), gpus in sorted(held.items()):
        now[node] += gpus
        assert 0 <= now[node] <= 4
    used = sum((stay.end_s - stay.start_s) * sum(gpus for _, gpus in stay.placement) for stay in world.stays)
    work = sum(job.run_s * job.gpus for job in jobs)
    assert used == pytest.approx(world.used_gpu_s) and work - 1e-6 <= used <= work + world.lost_gpu_s + 1e-6


def test_a_report_counts_what_happened() -> None:
    runs, world = schedule([_job(0, 0, 100, 6), _job(1, 0, 100, 8, "b")], "fifo", 8, 4)
    found = report(runs, world)
    assert (found["jct_s_mean"], found["jct_s_p50"], found["queued_s_mean"]) == (150, 150, 50)
    assert found["utilisation_pct"] == pytest.approx(100 * 1400 / 1600)
    assert found["fragmentation_pct"] == pytest.approx(100 * 200 / 1600)
    assert found["fairness"] == pytest.approx(1.5**2 / (2 * 1.25))
    assert found["p90_calibration_pct"] is None
    runs[0].promised_s, runs[1].promised_s = 0.0, 99.0
    assert report(runs, world)["p90_calibration_pct"] == 50
    assert report([], World(Pool(1, 1)))["jct_s_mean"] is None


def test_fairness_is_between_one_for_all_and_all_the_same() -> None:
    assert jain([1, 1, 1]) == 1 and jain([1, 0, 0, 0]) == 0.25 and jain([]) is None


def test_what_can_never_run_is_refused() -> None:
    with pytest.raises(UsageError, match="job-0 needs 9 GPUs, there are 8"):
        schedule([_job(0, 0, 1, 9)], "fifo", 8, 4)
    with pytest.raises(UsageError, match="expected a multiple"):
        schedule([], "fifo", 9, 4)
    with pytest.raises(UsageError, match="no policy `lifo`"):
        schedule([], "lifo", 8, 4)
