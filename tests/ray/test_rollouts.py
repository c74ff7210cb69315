"""Updates, rollbacks, scale-downs and starts from zero on a real cluster, under requests of which none may fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

import llmos
from tests.ray.test_jobs import named, until
from tests.support import nano

REQUESTS = 500


@pytest.fixture(scope="module")
def models(cluster: llmos.Client) -> tuple[str, str]:
    """Two versions of a model, of the same files."""
    done = cluster.wait(cluster.submit(nano("rolled", workers=1, steps=5)).id, timeout_s=120)
    assert done.phase == "succeeded"
    return str(done.model), cluster.import_model("rolled", cluster.model(str(done.model)).path).ref


def service(model: str, **fields: object) -> llmos.Service:
    small = llmos.Resources(cpus=0.2)
    return llmos.Service(name="roll", model=model, resources=small, threads=1, context_length=64, **fields)  # type: ignore[arg-type]


class Crowd:
    """Asks one thing after the other, every second one streamed, in several threads, until it is told to stop."""

    def __init__(self, cluster: llmos.Client) -> None:
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._url, self._key = cluster.connection.url, cluster.connection.key

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self._key}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=90) as client:
            while not self._stop.is_set():
                stream = len(self.answers) % 2 == 0
                body = {"model": "roll", "prompt": "def f(", "max_tokens": 4, "temperature": 0, "stream": stream}
                try:
                    response = client.post("/v1/completions", json=body)
                    text = response.text
                    assert response.status_code == 200, text
                    self.answers.append(_streamed(text) if stream else response.json()["choices"][0]["text"])
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                time.sleep(0.02)

    @contextmanager
    def at_work(self, threads: int) -> Iterator[None]:
        workers = [threading.Thread(target=self.run) for _ in range(threads)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            self._stop.set()
            for worker in workers:
                worker.join()


def _streamed(text: str) -> str:
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]", text
    return "".join(choice["text"] for one in data[:-1] for choice in json.loads(one)["choices"])


def serving(cluster: llmos.Client) -> dict[str, float]:
    """The shares of the requests by model."""
    return {one["model"]: one["weight"] for one in cluster.service("roll")["revisions"] if one["weight"]}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_request_fails_across_an_update_a_rollback_and_a_scale_down(
    cluster: llmos.Client, models: tuple[str, str]
) -> None:
    first, second = models
    two, one = llmos.Replicas(min=2, max=2), llmos.Replicas(min=1, max=1)
    cluster.serve(service(first, replicas=two))
    cluster.wait_service("roll", timeout_s=120)
    crowd = Crowd(cluster)
    with crowd.at_work(4):
        until(lambda: len(crowd.answers) > 50)
        cluster.serve(service(second, replicas=two, keep_s=30))
        until(lambda: serving(cluster) == {second: 1.0}, timeout_s=120)
        asked_s = time.monotonic()
        cluster.rollback_service("roll")
        until(lambda: serving(cluster) == {first: 1.0})
        print(f"rolled back in {time.monotonic() - asked_s:.1f} s")
        cluster.serve(service(first, replicas=one, keep_s=1))
        until(lambda: len(named("ServeReplica:llmos-service-roll")) == 1, timeout_s=120)
        until(lambda: len(crowd.answers) >= REQUESTS, timeout_s=240)
    assert crowd.failures == [] and len(set(crowd.answers)) == 1
    cluster.remove_service("roll")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_zero_to_an_answer(cluster: llmos.Client, models: tuple[str, str]) -> None:
    cluster.serve(service(models[0], replicas=llmos.Replicas(min=0, max=1), idle_s=2))
    until(lambda: cluster.service("roll").phase == "idle" and not named("ServeReplica:llmos-service-roll"))
    asked_s = time.monotonic()
    assert cluster.complete("roll", "def f(", max_tokens=4, temperature=0)
    took_s = time.monotonic() - asked_s
    until(lambda: cluster.service("roll").wake_s is not None)
    wake_s = cluster.service("roll").wake_s
    print(f"zero to an answer: {took_s:.1f} s, of which {wake_s:.1f} s until a replica was there")
    assert 0 < wake_s <= took_s + 0.5
    until(lambda: cluster.service("roll").phase == "idle" and not named("ServeReplica:llmos-service-roll"))
    cluster.remove_service("roll")
