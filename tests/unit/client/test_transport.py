from __future__ import annotations

import json

import httpx
import pytest

from llmos import Client, errors
from llmos.errors import CapacityError, ClusterError, ConflictError, LlmosError, NotFoundError, SpecError
from llmos.transport import error_of
from tests.unit.client.conftest import URL, Clock
from tests.unit.fake_api import JOB_SPEC, KEY, FakeApi, error

LEAVES = [leaf for leaf in vars(errors).values() if isinstance(leaf, type) and issubclass(leaf, LlmosError)]


def respond(response: httpx.Response) -> httpx.Response:
    response.request = httpx.Request("GET", f"{URL}/api/v1/jobs")
    return response


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if leaf not in (LlmosError, SpecError)])
def test_every_leaf_comes_back_as_itself(leaf: type[LlmosError]) -> None:
    raised = leaf("what was wrong", hint="what to do")
    back = error_of(respond(error(leaf.http_status, raised.code, raised.message, raised.hint)))
    assert type(back) is leaf
    assert str(back) == str(raised)


def test_a_spec_error_keeps_its_problems() -> None:
    raised = SpecError(["line 1: a", "line 2: b"], source="job.yaml")
    back = error_of(respond(error(422, raised.code, raised.message)))
    assert isinstance(back, SpecError)
    assert (back.problems, back.source, str(back)) == (raised.problems, raised.source, str(raised))


def test_a_full_cluster_says_when_to_ask_again() -> None:
    back = error_of(respond(error(429, "capacity", "full", headers={"Retry-After": "7"})))
    assert isinstance(back, CapacityError) and back.retry_after_s == 7
    dated = error_of(respond(error(429, "capacity", "full", headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"})))
    assert isinstance(dated, CapacityError) and dated.retry_after_s == 1


def test_an_unknown_code_is_judged_by_its_status() -> None:
    assert type(error_of(respond(error(409, "odd", "in use")))) is ConflictError
    assert type(error_of(respond(error(418, "odd", "teapot")))) is LlmosError


@pytest.mark.parametrize("status", [200, 404, 500])
def test_another_program_at_the_address_is_recognized(api: FakeApi, cluster: Client, status: int) -> None:
    api.trouble = [httpx.Response(status, html="<h1>hello</h1>")]
    with pytest.raises(ClusterError, match=rf"{URL}/api/v1/jobs answered {status} with something .* \(text/html\)"):
        cluster.jobs()


def test_a_submit_is_repeated_with_the_same_idempotency_key(api: FakeApi, cluster: Client) -> None:
    lost_answer = httpx.ReadError("connection reset")
    api.trouble = [httpx.ConnectError("refused"), error(503, "cluster", "control restarts"), lost_answer]
    job = cluster.submit(JOB_SPEC)
    bodies = [json.loads(request.content) for request in api.requests]
    assert len(bodies) == 4 and len({body["idempotency_key"] for body in bodies}) == 1
    assert [row["id"] for row in api.jobs] == [job.id]


def test_two_submits_are_two_jobs(api: FakeApi, cluster: Client) -> None:
    assert cluster.submit(JOB_SPEC).id != cluster.submit(JOB_SPEC).id


def test_a_call_that_may_have_arrived_is_not_repeated_if_it_would_act_twice(api: FakeApi, cluster: Client) -> None:
    api.trouble = [httpx.ReadError("connection reset")]
    with pytest.raises(ClusterError, match="cannot be reached"):
        cluster.create_key("me")
    assert len(api.requests) == 1
    api.trouble = [httpx.ConnectError("refused")]
    assert cluster.create_key("me").secret
    assert len(api.keys) == 1


def test_refusals_are_not_repeated(api: FakeApi, cluster: Client, clock: Clock) -> None:
    with pytest.raises(NotFoundError, match="no job `x`"):
        cluster.job("x")
    assert len(api.requests) == 1 and clock.sleeps == []


def test_an_address_where_nobody_ever_answered_is_given_up_soon(api: FakeApi, cluster: Client, clock: Clock) -> None:
    api.trouble = [httpx.ConnectError("refused")] * 100
    with pytest.raises(ClusterError, match=f"the cluster at {URL} cannot be reached \\(refused\\)") as caught:
        cluster.jobs()
    assert "llmos up" in caught.value.hint and "LLMOS_URL" in caught.value.hint
    assert sum(clock.sleeps) <= 1.0


def test_a_cluster_that_answered_before_is_waited_for_with_growing_pauses(
    api: FakeApi, cluster: Client, clock: Clock
) -> None:
    cluster.jobs()
    api.trouble = [httpx.ConnectError("refused")] * 100
    with pytest.raises(ClusterError):
        cluster.jobs()
    assert 20 <= sum(clock.sleeps) <= 30
    assert clock.sleeps == sorted(clock.sleeps) and clock.sleeps[-1] == 2.0


def test_a_timeout_reads_like_one(api: FakeApi, cluster: Client) -> None:
    api.trouble = [httpx.ReadTimeout("")] * 100
    with pytest.raises(ClusterError, match=r"did not answer in time \(ReadTimeout\)"):
        cluster.jobs()


def test_calls_to_this_machine_ignore_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    for url, mounts in (("http://127.0.0.1:2", 0), ("http://cluster:2", 1)):
        with Client(url, KEY) as client:
            assert len(client._api._http._mounts) == mounts, url
