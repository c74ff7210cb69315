"""Processes that stand by: who starts takes one, and Ray knows them by the environment that is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray._private import ray_constants
from ray.runtime_env import RuntimeEnv

import llmos
from llmos import standby
from llmos.control.ray import prestart
from llmos.control.ray.standby import useless
from llmos.control.standbys import FOR_ATTEMPTS
from llmos.files import write_json
from llmos.layout import Layout
from tests.ray.test_jobs import named, until
from tests.support import nano


def test_ray_calls_what_is_to_be_loaded() -> None:
    assert standby.SETUP_HOOK == ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR


def test_an_environment_is_written_as_ray_writes_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    attempt = prestart.environment(layout, rank=False).serialized_runtime_env
    assert attempt == RuntimeEnv(env_vars=standby.attempt(tmp_path)).serialize()
    rank = prestart.environment(layout, rank=True).serialized_runtime_env
    assert json.loads(rank) == {"env_vars": standby.rank(tmp_path)} and " " not in rank


def test_a_process_that_stands_by_goes_when_it_is_of_no_use(tmp_path: Path) -> None:
    layout, now = Layout(tmp_path), time.time()
    assert useless(layout, now, now), "llmos is down"
    write_json(layout.cluster, {})
    assert not useless(layout, now, now + standby.KEPT_S - 1)
    assert useless(layout, now, now + standby.KEPT_S + 1)
    assert useless(layout, os.stat(standby.__file__).st_mtime - 1, now - 1), "its code was replaced"


@pytest.mark.parametrize("use", ["attempt", "rank"])
def test_what_stands_by_has_loaded_torch_for_ranks_and_has_looked_for_no_gpu(use: str, tmp_path: Path) -> None:
    write_json(Layout(tmp_path).cluster, {})
    code = f"""
import os, sys
from llmos.control.ray import standby
asked = []
if {use!r} == "rank":
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    del os.environ["OMP_NUM_THREADS"]
    torch.cuda.is_available = torch.cuda.device_count = lambda: asked.append("gpus") or 0
standby.{use}()
assert ("llmos.train.rank" in sys.modules, "torch" in sys.modules) == ({use!r} == "rank",) * 2
assert "OMP_NUM_THREADS" not in os.environ and not asked
os._exit(0)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment[standby.STATE_DIR] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
    assert (len(ranks), len(attempts)) == (2, 1) and {one.pid for one in (*ranks, *attempts)} <= stood_by
    print(f"the first step after {took_s:.1f} s")
