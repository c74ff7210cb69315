"""Replicas of a service on a real cluster: one that hangs, and one that is not wanted any more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import psutil
import pytest

import llmos
from llmos.spec import Replicas
from tests.ray.test_jobs import named, nothing_is_held, until
from tests.support import nano

NAME, CORE = "pair", "llmos.infer.child"
FOUND_S = 15.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def model(cluster: llmos.Client) -> Iterator[str]:
    done = cluster.wait(cluster.submit(nano("paired", workers=1, steps=5)).id, timeout_s=120)
    yield str(done.model)
    cluster.remove_model(str(done.model))


@pytest.fixture
def pair(cluster: llmos.Client, model: str) -> Iterator[llmos.Service]:
    service = llmos.Service(name=NAME, model=model, replicas=Replicas(min=2, max=2))
    cluster.serve(service)
    cluster.wait_service(NAME, timeout_s=120)
    yield service
    cluster.remove_service(NAME)
    until(lambda: nothing_is_held(cluster))


class Asker:
    """Asks the service from eight threads; each answer is its status, what it ends with and the seconds it took."""

    def __init__(self, cluster: llmos.Client) -> None:
        key = {"Authorization": f"Bearer {cluster.connection.key}"}
        self._http = httpx.Client(base_url=cluster.connection.url, headers=key, timeout=60)
        self._threads = ThreadPoolExecutor(8)

    def ask(self, count: int) -> list[Future[tuple[int, str, float]]]:
        return [self._threads.submit(self._one, number) for number in range(count)]

    def _one(self, number: int) -> tuple[int, str, float]:
        began = time.monotonic()
        body = {"model": NAME, "prompt": f"{number} def f(", "max_tokens": 24, "ignore_eos": True, "stream": True}
        found = self._http.post("/v1/completions", json=body)
        end = found.text.strip().splitlines()[-1]
        return found.status_code, end, time.monotonic() - began

    def close(self) -> None:
        self._threads.shutdown()
        self._http.close()


@pytest.fixture
def asker(cluster: llmos.Client) -> Iterator[Asker]:
    made = Asker(cluster)
    yield made
    made.close()


def test_a_core_that_hangs_is_found_and_replaced(cluster: llmos.Client, pair: llmos.Service, asker: Asker) -> None:
    cores = named(CORE)
    assert len(cores) == 2
    assert {one.result()[:2] for one in asker.ask(16)} == {(200, "data: [DONE]")}
    cores[0].suspend()
    hung_s = time.monotonic()
    found = [one.result() for one in asker.ask(16)]
    assert {one[:2] for one in found} == {(200, "data: [DONE]")}  # asked elsewhere: nothing had been sent yet
    assert 1.0 < max(one[2] for one in found) < FOUND_S
    until(lambda: not cores[0].is_running() or cores[0].status() == psutil.STATUS_ZOMBIE, timeout_s=60)
    print(f"answers after {max(one[2] for one in found):.1f} s; ended after {time.monotonic() - hung_s:.1f} s")
    until(lambda: len(named(CORE)) == 2, timeout_s=60)
    cluster.wait_service(NAME, timeout_s=60)
    assert {one.result()[:2] for one in asker.ask(16)} == {(200, "data: [DONE]")}


def test_a_scale_down_fails_no_request(cluster: llmos.Client, pair: llmos.Service, asker: Asker) -> None:
    replicas = named(f"ServeReplica:llmos-service-{NAME}")
    assert len(replicas) == 2
    asked = asker.ask(500)
    asked[50].result()
    cluster.serve(pair.model_copy(update={"replicas": Replicas(min=1, max=1)}))
    found = [one.result() for one in asked]
    assert {one[:2] for one in found} == {(200, "data: [DONE]")}
    until(lambda: len(named(f"ServeReplica:llmos-service-{NAME}")) == 1, timeout_s=60)
    assert {one.result()[:2] for one in asker.ask(16)} == {(200, "data: [DONE]")}
