"""Services on a real cluster: they answer, survive the death of a replica, change and go."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

import llmos
from llmos.errors import ConflictError
from tests.ray.test_jobs import LOOPBACK, named, nothing_is_held, until
from tests.support import LLMOS, listening, nano


@pytest.fixture(scope="module")
def model(cluster: llmos.Client) -> str:
    done = cluster.wait(cluster.submit(nano("served", workers=1, steps=5)).id, timeout_s=120)
    assert done.phase == "succeeded"
    return str(done.model)


def test_life_of_a_service(cluster: llmos.Client, model: str) -> None:
    service = llmos.Service(name="text", model=model)
    cluster.serve(service)
    cluster.wait_service("text", timeout_s=60)
    assert listening(Path.home()) <= LOOPBACK
    before = cluster.complete("text", "def f(", max_tokens=5, temperature=0)
    (replica,) = named("ServeReplica:llmos-service-text")
    time.sleep(3)  # some ticks of the control loop: what runs as wanted is left alone
    assert [process.pid for process in named("ServeReplica:llmos-service-text")] == [replica.pid]
    with pytest.raises(ConflictError, match="text"):
        cluster.remove_model(model)

    replica.kill()
    until(lambda: not cluster.service("text").is_ready, timeout_s=20)
    cluster.wait_service("text", timeout_s=60)
    assert cluster.complete("text", "def f(", max_tokens=5, temperature=0) == before

    (replica,) = named("ServeReplica:llmos-service-text")
    cluster.serve(service.model_copy(update={"max_batch": 3}))
    until(lambda: not replica.is_running() or replica.status() == "zombie", timeout_s=60)
    cluster.wait_service("text", timeout_s=60)
    assert cluster.complete("text", "def f(", max_tokens=5, temperature=0) == before

    cluster.remove_service("text")
    until(lambda: nothing_is_held(cluster))
    assert cluster.services() == []
    cluster.remove_model(model)


def test_the_command_line_serves_and_says_no_in_one_line(cluster: llmos.Client) -> None:
    done = subprocess.run([LLMOS, "serve", "nothing@1"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error:") and "nothing" in done.stderr
    assert "Traceback" not in done.stderr
