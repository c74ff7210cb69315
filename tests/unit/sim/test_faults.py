"""What goes wrong in the twin, and what it costs."""

from __future__ import annotations

from itertools import islice
from math import inf

import pytest

from llmos.sim.faults import DAY_S, LAUNCH_FOUND_S, NOTICED_S, Fate, Faults
from llmos.sim.job_replay import RESTART_S, Run, World
from llmos.sim.job_report import report
from llmos.sim.job_traces import TraceJob
from llmos.sim.planned import RETRIES
from llmos.sim.scheduling import schedule

POLICIES = ("fifo", "backfill", "srtf", "llmos")


def _jobs(count: int, run_s: float = 7200.0, gpus: int = 4) -> list[TraceJob]:
    return [TraceJob(f"job-{i}", 10.0 * i, run_s, gpus, f"u{i % 3}", "k") for i in range(count)]


def _scheduled(policy: str, jobs: list[TraceJob], faults: Faults) -> tuple[list[Run], World]:
    return schedule(jobs, policy, 32, 8, faults)


def test_the_same_seed_gives_the_same_fates_and_outages() -> None:
    faults = Faults(3, failures_per_day=4.0, launch_failures=0.2, stuck_per_day=1.0, stragglers=0.3, launch_s=20.0)
    fates = [faults.fate(f"j{i}", 1) for i in range(500)]
    assert fates == [faults.fate(f"j{i}", 1) for i in range(500)] != [faults.fate(f"j{i}", 2) for i in range(500)]
    assert sum(fate.works_s == 0 for fate in fates) / 500 == pytest.approx(0.2, abs=0.05)
    launched = [fate for fate in fates if fate.works_s]
    assert sum(fate.speed < 1 for fate in launched) / len(launched) == pytest.approx(0.3, abs=0.06)
    assert sum(fate.launch_s for fate in launched) / len(launched) == pytest.approx(20.0, rel=0.15)
    assert sum(fate.works_s for fate in launched) / len(launched) == pytest.approx(DAY_S, rel=0.15)
    outages = list(islice(faults.outages(8), 400))
    assert outages == list(islice(faults.outages(8), 400)) and {node for _, node in outages} == set(range(8))
    assert outages[-1][0] / 400 == pytest.approx(DAY_S / 4, rel=0.15)
    assert Faults().none and not faults.none and Faults().fate("a", 1) == Fate(found_s=NOTICED_S)


@pytest.mark.parametrize("policy", POLICIES)
def test_all_jobs_end_whatever_goes_wrong_and_their_work_is_done(policy: str) -> None:
    faults = Faults(1, failures_per_day=12.0, launch_failures=0.1, stuck_per_day=2.0, stragglers=0.2, launch_s=30.0)
    jobs = _jobs(60)
    runs, world = _scheduled(policy, jobs, faults)
    assert all(run.ended_s is not None for run in runs) and world.failures > 5
    found = report(runs, world)
    assert found["failures"] == world.failures and found["lost_gpu_h"]
    held = sum((stay.end_s - stay.start_s) * sum(gpus for _, gpus in stay.placement) for stay in world.stays)
    assert held == pytest.approx(world.used_gpu_s)
    slow = max(1 / faults.fate(job.id, n).speed for job in jobs for n in (1, 2, 3))
    work = sum(job.run_s * job.gpus for job in jobs)
    assert work + world.lost_gpu_s - 1e-3 <= held <= slow * work + world.lost_gpu_s + 1e-3
    for node in range(4):  # no GPU was given out twice
        events = [(at, by) for stay in world.stays for of, gpus in stay.placement if of == node
                  for at, by in ((stay.start_s, gpus), (stay.end_s, -gpus))]  # fmt: skip
        now = 0
        for _, by in sorted(events):
            now += by
            assert now <= 8


def test_a_launch_that_fails_is_tried_again_after_a_pause() -> None:
    faults = Faults(launch_failures=0.9)
    tries = next(n for n in range(1, 99) if faults.fate("job-0", n).works_s > 0)
    assert 1 < tries <= RETRIES
    runs, world = _scheduled("llmos", _jobs(1), faults)
    assert world.failures == tries - 1 and runs[0].attempts == tries
    pauses_s = sum(min(2.0**n, 300.0) for n in range(1, tries))
    assert runs[0].ended_s == pytest.approx((LAUNCH_FOUND_S + RESTART_S) * (tries - 1) + pauses_s + 7200.0)


def test_a_job_that_fails_for_ever_is_given_up() -> None:
    class Doomed(Faults):
        def fate(self, job: str, attempt: int) -> Fate:
            return Fate(works_s=0.0) if job == "job-0" else Fate()

    runs, world = _scheduled("llmos", _jobs(2), Doomed(launch_s=1.0))
    assert (runs[0].ended_s, runs[0].attempts, world.given_up) == (None, RETRIES + 1, 1)
    assert runs[1].ended_s is not None and world.waiting == 0


def test_a_stuck_job_goes_on_from_its_last_checkpoint() -> None:
    class Stuck(Faults):
        def fate(self, job: str, attempt: int) -> Fate:
            return Fate(works_s=4000.0, found_s=NOTICED_S) if attempt == 1 else Fate()

    runs, world = _scheduled("srtf", _jobs(1), Stuck(stuck_per_day=1.0))
    assert runs[0].ended_s == pytest.approx(4000 + NOTICED_S + RESTART_S + 7200 - 3600)
    assert world.lost_gpu_s == pytest.approx(4 * (400 + NOTICED_S + RESTART_S))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_node_that_is_lost_gives_its_jobs_to_others_and_comes_back(policy: str) -> None:
    class OneLoss(Faults):
        def outages(self, nodes: int):  # type: ignore[no-untyped-def]
            yield 4000.0, 0
            yield inf, 0

    jobs = [TraceJob(f"job-{i}", 0.0, 7200.0, 8, "u", "k") for i in range(5)]  # one more than there are nodes
    runs, world = _scheduled(policy, jobs, OneLoss(failures_per_day=1.0, repair_s=600.0))
    assert world.failures == 1 and not world.down
    gaps = [stay for stay in world.stays if stay.placement[0][0] == 0]
    assert not any(stay.start_s < 4600 and stay.end_s > 4000 for stay in gaps)
    assert any(stay.start_s == 4600 for stay in gaps)
    assert all(run.ended_s is not None for run in runs)
