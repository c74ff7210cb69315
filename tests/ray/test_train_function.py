"""A user's own loop as a job of a real cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmos
from llmos.doctor import measure_cluster
from llmos.errors import TrainingError
from llmos.parallel.network import SIZES
from llmos.settings import state_dir


def counting(steps: int, stop: Path | None = None) -> Callable[[Any], None]:
    """A loop in which ranks add up what each of them counts; the first attempt asks for its own end after 4 steps."""

    def loop(context: Any) -> None:
        import torch
        import torch.distributed as dist

        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        saved = context.latest()
        if saved:
            saved.load(model, optimizer)
        total = saved.numbers["total"] if saved else 0.0
        for step in range(saved.step + 1 if saved else 1, steps + 1):
            model(torch.ones(1, 1)).sum().backward()
            optimizer.step()
            counted = torch.tensor(float(context.rank + 1))
            dist.all_reduce(counted)
            total += counted.item()
            if step == 4 and stop and context.rank == 0:
                stop.touch()
            context.report(step, total=total, resumed=saved.step if saved else 0)
            if context.should_save():
                context.save(step, model, optimizer, total=total)
            if context.should_stop():
                return
        print("rank", context.rank, "of", context.size, "is done")

    return loop


def test_a_function_is_a_job_like_any_other(cluster: llmos.Client, capsys: pytest.CaptureFixture[str]) -> None:
    job = cluster.train_function(counting(6), name="counting", workers=2, steps=6, env={"OMP_NUM_THREADS": "1"})
    assert (job.phase, job.attempts, job.step, job.model) == ("succeeded", 1, 6, None)
    assert [(row.step, row.total) for row in cluster.metrics(job.id)] == [(step, 3.0 * step) for step in range(1, 7)]
    lines = list(cluster.logs(job.id))
    assert "[rank 0] rank 0 of 2 is done" in lines and "[rank 1] rank 1 of 2 is done" in lines
    assert [path.name for path in checkpoints(job.id)] == ["step-00000006"]
    assert f"job {job.id} · succeeded · step 6/6" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_of_the_cluster_measure_their_network(cluster: llmos.Client) -> None:
    found = measure_cluster(2, 0)
    assert (found.ranks, found.backend, len(found.links)) == (2, "gloo", 1)
    assert len(found.sums) == len(SIZES) and found.bandwidth > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_that_is_asked_to_end_goes_on_in_another_attempt(cluster: llmos.Client) -> None:
    stop = state_dir(None) / "jobs" / "resumed-1" / "attempts" / "1" / "stop"
    job = cluster.train_function(counting(6, stop), name="resumed", workers=2, steps=6, env={"OMP_NUM_THREADS": "1"})
    assert (job.phase, job.attempts, job.step) == ("succeeded", 2, 6)
    assert [(row.step, row.total, row.resumed) for row in cluster.metrics(job.id)] == [
        *((step, 3.0 * step, 0) for step in range(1, 5)),
        *((step, 3.0 * step, 4) for step in (5, 6)),
    ]
    assert [path.name for path in checkpoints(job.id)] == ["step-00000004", "step-00000006"]


def checkpoints(job: str) -> list[Path]:
    return sorted((state_dir(None) / "jobs" / job / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_a_function_raises_is_the_jobs_reason(cluster: llmos.Client) -> None:
    def loop(context: Any) -> None:
        raise ValueError("there is no such thing")

    with pytest.raises(TrainingError, match="ValueError: there is no such thing"):
        cluster.train_function(loop, name="wrong", steps=1, retries=0)
    assert any("Traceback" in line for line in cluster.logs("wrong"))
