"""Those who share several nodes give way to one another. Each of these takes more than a minute."""

from __future__ import annotations

import pytest

import llmos
from llmos.spec import Workers
from tests.ray.nodes.runs import NODES, Figure, job, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 150
"""More than are done before anybody notices that somebody else came: submitting, a tick, a step."""
LONG = 10**6


def losses(cluster: llmos.Client, id: str) -> dict[int, float]:
    """Of each step; where attempts overlap, the later one counts: it went on from a checkpoint."""
    return {row.step: row.loss for row in cluster.metrics(id)}


def begin(cluster: llmos.Client, spec: llmos.TrainJob, step: int = 1) -> str:
    """Submit ``spec`` and wait until it has done ``step`` steps."""
    id = cluster.submit(spec).id
    until(lambda: (cluster.job(id).step or 0) >= step, timeout_s=180)
    return id


def reasons(cluster: llmos.Client, id: str, what: str) -> list[str]:
    """Why ``what`` happened to a job, each time."""
    return [event.why for event in cluster.events(id) if event.what == what]


@pytest.fixture(scope="module")
def undisturbed(cluster: llmos.Client) -> llmos.JobView:
    """A job of a worker on each of all nodes, which nobody disturbed."""
    done = cluster.wait(cluster.submit(job("undisturbed", NODES, STEPS)).id, timeout_s=300)
    assert (done.phase, done.attempts, done.step) == ("succeeded", 1, STEPS), done.reason
    return done


def test_a_job_gives_way_to_a_higher_one_and_goes_on_to_the_very_losses(
    cluster: llmos.Client, undisturbed: llmos.JobView, figure: Figure
) -> None:
    low = begin(cluster, job("low", NODES, STEPS, priority=-1), step=5)
    high = cluster.submit(job("high", 1, 3)).id
    figure("submit of a higher job to its end", until(lambda: cluster.job(high).final, timeout_s=180))
    assert cluster.job(high).phase == "succeeded"
    done = cluster.wait(low, timeout_s=300)
    assert (done.phase, done.attempts, done.step) == ("succeeded", 2, STEPS), done.reason
    assert losses(cluster, low) == losses(cluster, undisturbed.id)
    assert any(high in why for why in reasons(cluster, low, "stopping")), cluster.events(low)
    assert any("resumed" in line for line in cluster.logs(low))


def test_small_jobs_use_what_a_gang_waits_with(cluster: llmos.Client, figure: Figure) -> None:
    first, second = (
        begin(cluster, job(name, NODES // 2, LONG, max_runtime="20m", expected_runtime="15m"))
        for name in ("first", "second")
    )
    waits = cluster.submit(job("waits", NODES, 3)).id
    until(lambda: f"by {first}" in cluster.job(waits).reason)  # says whom it waits for
    long = cluster.submit(job("long", 1, LONG, expected_runtime="2h")).id
    short = cluster.submit(job("short", 1, LONG, expected_runtime="1m")).id
    cluster.cancel(second)
    until(lambda: cluster.job(second).final)
    figure("half of the nodes are free to a short job on one", until(lambda: cluster.job(short).phase != "queued"))
    assert [cluster.job(id).phase for id in (waits, long)] == ["queued", "queued"]
    for id in (long, short, first):
        cluster.cancel(id)
    assert cluster.wait(waits, timeout_s=300).phase == "succeeded"


def test_a_service_takes_its_gpu_back_from_training(
    cluster: llmos.Client, undisturbed: llmos.JobView, figure: Figure
) -> None:
    spec = job("elastic", 1, LONG).model_copy(
        update={"workers": Workers(min=1, max=NODES, grow_every=5.0), "mesh": "auto"}
    )
    cluster.wait(cluster.submit(job("all", NODES, 1)).id, timeout_s=180)  # so there are all nodes
    id = begin(cluster, spec)
    until(lambda: cluster.job(id).gang["bundles"] == NODES, timeout_s=120)
    attempts = cluster.job(id).attempts
    cluster.serve(llmos.Service(name="served", model=str(undisturbed.model), resources=spec.resources))
    back_s = until(lambda: cluster.service("served").is_ready, timeout_s=180)
    figure("a service asks for its GPU to its first answer", back_s)
    assert any("served" in why for why in reasons(cluster, id, "stopping")), cluster.events(id)
    assert cluster.complete("served", "def f(", max_tokens=3)
    until(lambda: cluster.job(id).attempts == attempts + 1 and cluster.job(id).phase == "running", timeout_s=120)
    assert cluster.job(id).gang["bundles"] == NODES // 2  # three cannot share its batch equally
