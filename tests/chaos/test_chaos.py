"""Whatever dies or moves in the middle of a run: it goes on, no sample is read twice or skipped, the losses stay."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest

import llmos
from tests.chaos.runs import EVERY, STEPS, History, extra_node, history, job, named, steps_done, until

pytestmark = pytest.mark.slow


def finish(cluster: llmos.Client, id: str) -> llmos.JobView:
    done = cluster.wait(id, timeout_s=400)
    assert (done.phase, done.step) == ("succeeded", STEPS), done.reason
    return done


def begin(cluster: llmos.Client, spec: llmos.TrainJob, step: int) -> str:
    id = cluster.submit(spec).id
    until(lambda: (cluster.job(id).step or 0) >= step)
    return id


def same(mine: History, unbroken: History, *, exactly: bool) -> None:
    assert mine.samples == unbroken.samples
    tolerance = 0.0 if exactly else 1e-5
    assert mine.losses == pytest.approx(unbroken.losses, rel=tolerance, abs=0.0)


@pytest.mark.parametrize("seed", range(2))
def test_a_worker_is_killed_at_a_random_step(cluster: llmos.Client, unbroken: History, seed: int) -> None:
    chance = random.Random(seed)
    id = begin(cluster, job("killed", workers=2), step=chance.randrange(EVERY + 1, STEPS // 2))
    chance.choice(named("RayTrainWorker")).kill()
    assert finish(cluster, id).attempts == 1  # Ray Train has replaced it
    same(history(cluster, id), unbroken, exactly=True)


def test_both_workers_are_killed_at_once(cluster: llmos.Client, unbroken: History) -> None:
    id = begin(cluster, job("massacre", workers=2), step=EVERY + 10)
    for worker in named("RayTrainWorker"):
        worker.kill()
    finish(cluster, id)
    same(history(cluster, id), unbroken, exactly=True)


def test_the_attempt_is_killed(cluster: llmos.Client, unbroken: History) -> None:
    id = begin(cluster, job("beheaded", workers=2), step=EVERY + 10)
    named("AttemptActor")[0].kill()
    assert finish(cluster, id).attempts == 2
    same(history(cluster, id), unbroken, exactly=True)


def test_a_job_shrinks_for_another_and_grows_again_and_loses_no_step(cluster: llmos.Client, unbroken: History) -> None:
    id = begin(cluster, job("elastic", workers=(1, 2)), step=10)
    assert len(named("RayTrainWorker")) == 2
    other = begin(cluster, job("newcomer", workers=1), step=1)
    assert cluster.job(id).attempts == 2
    cluster.cancel(other)
    assert finish(cluster, id).attempts == 3
    assert steps_done(id) == list(range(1, STEPS + 1))  # none twice
    same(history(cluster, id), unbroken, exactly=False)
    why = [event.why for event in cluster.events(id)]
    assert any("shrinks from 2 workers: room for newcomer" in text for text in why), why
    assert any("grows from 1 worker to 2" in text for text in why), why


def test_a_node_is_killed(cluster: llmos.Client, unbroken: History) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="n", dir="/tmp", ignore_cleanup_errors=True) as directory,
        extra_node(cluster, Path(directory)) as kill,
    ):
        id = begin(cluster, job("orphaned", workers=(2, 3)), step=EVERY + 10)
        assert len(named("RayTrainWorker")) == 3
        kill()
        assert finish(cluster, id).attempts >= 2
    same(history(cluster, id), unbroken, exactly=False)
