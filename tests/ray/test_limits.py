"""Limits of keys on a real cluster: who asks too much gets a 429 and is told when to come back; nobody else does."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import psutil
import pytest

import llmos
from tests.ray.test_jobs import named, nothing_is_held, scraped, until
from tests.unit.infer.small import write_model

NAME = "limited"
BODY = {"model": NAME, "prompt": "class Walk", "max_tokens": 2}
LONG = {**BODY, "max_tokens": 200, "ignore_eos": True, "stream": True, "n": 8}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def served(cluster: llmos.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[llmos.Client]:
    model = cluster.import_model(NAME, write_model(tmp_path_factory.mktemp("model")))
    cluster.serve(llmos.Service(name=NAME, model=model.ref, dtype="float32", threads=1))
    cluster.wait_service(NAME, timeout_s=120)
    yield cluster
    cluster.remove_service(NAME)
    until(lambda: nothing_is_held(cluster))
    cluster.remove_model(model.ref)


def client_of(cluster: llmos.Client, name: str, **limits: int | None) -> httpx.Client:
    secret = cluster.create_key(name, limits=limits).secret
    return httpx.Client(base_url=cluster.connection.url, headers={"Authorization": f"Bearer {secret}"}, timeout=60)


def test_who_asks_too_often_is_refused_and_others_are_not(served: llmos.Client) -> None:
    with client_of(served, "often", requests_per_min=3) as often, client_of(served, "free") as free:
        answers = [often.post("/v1/completions", json=BODY) for _ in range(5)]
        assert [one.status_code for one in answers] == [200, 200, 200, 429, 429]
        assert [one.headers["x-ratelimit-remaining-requests"] for one in answers] == ["2", "1", "0", "0", "0"]
        assert 50 <= int(answers[-1].headers["Retry-After"]) <= 61
        assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
        assert free.post("/v1/completions", json=BODY).status_code == 200
        assert refused_by(served, "key_requests") == 2.0
        until(lambda: used(served, "often") == 3)  # what was refused was not counted


def test_who_has_a_request_open_waits_for_it(served: llmos.Client) -> None:
    with client_of(served, "one", concurrency=1) as one:
        with one.stream("POST", "/v1/completions", json=LONG) as first:
            next(first.iter_raw())
            refused = one.post("/v1/completions", json=BODY)
            assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        until(lambda: one.post("/v1/completions", json=BODY).status_code == 200, timeout_s=5)  # it has left


def test_a_front_door_that_starts_anew_begins_a_new_minute(served: llmos.Client) -> None:
    with client_of(served, "again", requests_per_min=2) as again:
        keyed = {"Idempotency-Key": "1"}
        first = again.post("/v1/completions", json=BODY, headers=keyed)
        replayed = again.post("/v1/completions", json=BODY, headers=keyed)
        assert replayed.headers["idempotent-replayed"] == "true" and replayed.content == first.content
        assert [again.post("/v1/completions", json=BODY).status_code for _ in range(2)] == [200, 429]
        (door,) = named("GatewayActor")
        door.kill()
        psutil.wait_procs([door], timeout=10)
        until(lambda: again.post("/v1/completions", json=BODY).status_code == 200, timeout_s=60)
        after = again.post("/v1/completions", json=BODY, headers=keyed)
        assert after.status_code == 200 and "idempotent-replayed" not in after.headers  # docs/limits.md says so


def refused_by(cluster: llmos.Client, limit: str) -> float:
    """What the metrics say of the service's requests that were refused."""
    lines = [line for line in scraped(cluster).splitlines() if line.startswith("llmos_model_refused_total")]
    (found,) = (line for line in lines if f'"{limit}"' in line and f'"{NAME}"' in line)
    return float(found.rpartition(" ")[2])


def used(cluster: llmos.Client, key: str) -> int:
    """Requests that are counted for the key of this name."""
    return sum(row["requests"] for row in cluster.usage(key=key)["rows"])
