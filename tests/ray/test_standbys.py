"""Processes that stand by: who starts takes one, and Ray knows them by the environment that is asked for."""

from __future__ import annotations

import time

import psutil
import pytest
from ray._private import ray_constants

import llmos
from llmos import standby
from llmos.control.standbys import FOR_ATTEMPTS
from tests.ray.test_jobs import named, until
from tests.support import nano


def test_ray_calls_what_is_to_be_loaded() -> None:
    assert standby.SETUP_HOOK == ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR


def ready() -> list[psutil.Process]:
    """The processes that stand by, once none of them computes: each has loaded what it has to."""
    found = [one for one in named("ray::IDLE") if standby.SETUP_HOOK in one.environ()]
    before = [sum(one.cpu_times()[:2]) for one in found]
    time.sleep(2)
    calm = [sum(one.cpu_times()[:2]) - used < 0.4 for one, used in zip(found, before, strict=True)]
    return found if all(calm) else []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_starts_in_processes_that_have_loaded_torch_before_it_was_submitted(cluster: llmos.Client) -> None:
    until(lambda: len(ready()) >= 2 + FOR_ATTEMPTS, timeout_s=150)
    stood_by = {one.pid for one in ready()}
    submitted_at = time.time()
    job = cluster.submit(nano("at-once", workers=2, steps=400)).id
    until(lambda: (cluster.job(job).step or 0) > 0, timeout_s=60)
    took_s = time.time() - submitted_at
    ranks, attempts = named("RayTrainWorker"), named("AttemptActor")
    cluster.cancel(job)
    cluster.wait(job, timeout_s=60)
    assert len(ranks) == 2 and {one.pid for one in (*ranks, *attempts)} <= stood_by
    print(f"the first step after {took_s:.1f} s")
