"""Limits, usage and metrics of a whole front door, over sockets."""

from __future__ import annotations

from llmos.errors import EngineError
from llmos.front.usage import comment
from llmos.heartbeat import Route
from llmos.openai.sse import DONE, encode, sse
from llmos.usage import FRONT_DOOR, GUESSED, Record, Tokens
from tests.unit.front.test_metrics import samples
from tests.unit.front.world import BODY, Door, door, replicas

USED = Tokens(12, 8, 2)
CHUNK = sse({"choices": [{"text": "x"}]})
USAGE = {"prompt_tokens": 12, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8}}
WHOLE = encode({"choices": [], "usage": USAGE})
STREAM = {**BODY, "stream": True}


def records(front: Door) -> list[Record]:
    found = front.metering.ledger.take()
    if found:
        front.metering.ledger.forget(found)
    return found


async def test_the_third_request_of_a_minute_is_refused_before_a_replica_is_asked() -> None:
    with replicas([WHOLE]) as (one,):
        async with door(one.beat, limits={"requests_per_min": 2}) as front:
            first, second, third = [await front.client.post("/v1/completions", json=BODY) for _ in range(3)]
            assert first.status_code == second.status_code == 200 and third.status_code == 429
            left = [answer.headers["x-ratelimit-remaining-requests"] for answer in (first, second, third)]
            assert left == ["1", "0", "0"] and first.headers["x-ratelimit-limit-requests"] == "2"
            assert first.headers["x-ratelimit-reset-requests"] in ("1m0s", "1m1s")
            assert 59 <= int(third.headers["Retry-After"]) <= 61
            assert third.json()["error"]["code"] == "rate_limit_exceeded"
            assert len(one.prompts) == 2 and len(records(front)) == 2
            seen = samples(front.metering.metrics)
            assert seen["llmos_model_refused_total"] == {("m", "tenant-1", "key_requests"): 1}


async def test_a_services_limits_are_those_of_its_route() -> None:
    routes = {"m": Route(7, aliases=("same",), limits={"tokens_per_min": 100})}
    with replicas([WHOLE]) as (one,):
        async with door(one.beat, routes=routes) as front:
            large = await front.client.post("/v1/completions", json={**BODY, "model": "same", "max_tokens": 101})
            assert large.status_code == 400 and "service `m` may take 100 a minute" in large.text
            fits = await front.client.post("/v1/completions", json={**BODY, "max_tokens": 50})
            assert fits.headers["x-ratelimit-remaining-tokens"] == "86"  # 100 - 12 - 2
            again = await front.client.post("/v1/completions", json={**BODY, "max_tokens": 86})
            assert again.status_code == 429 and len(one.prompts) == 1


async def test_a_stream_and_a_whole_answer_are_counted_once_and_not_shown_how() -> None:
    with replicas([CHUNK, CHUNK + comment(USED) + DONE], [WHOLE]) as (streams, whole):
        async with door(streams.beat) as front:
            answer = await front.client.post("/v1/completions", json=STREAM)
            assert answer.content == CHUNK + CHUNK + DONE and "x-ratelimit-limit-requests" not in answer.headers
            (record,) = records(front)
            assert (record.prompt, record.cached, record.completion, record.status) == (*USED, 200)
            assert (record.key, record.tenant, record.service, record.model) == ("key-1", "tenant-1", "m", "m@1")
            assert record.witness == FRONT_DOOR
        async with door(whole.beat) as front:
            answer = await front.client.post("/v1/completions", json=BODY, headers={"x-request-id": "req_7"})
            assert answer.content == WHOLE
            (record,) = records(front)
            assert (record.id, record.prompt, record.cached, record.completion) == ("req_7", *USED)


async def test_what_breaks_off_is_a_guess_and_an_unknown_model_is_nothing() -> None:
    with replicas([CHUNK, CHUNK, EngineError("gone")]) as (one,):
        async with door(one.beat) as front:
            answer = await front.client.post("/v1/completions", json=STREAM)
            assert b'"error"' in answer.content
            (record,) = records(front)
            assert (record.status, record.witness, record.model) == (503, GUESSED, "m@1")
            assert record.completion == 3  # events, that of the error is one
            other = await front.client.post("/v1/completions", json={**BODY, "model": "what?"})
            assert other.status_code == 404 and records(front) == []
            assert b"what?" not in front.metering.metrics.text()
            front.fleet.services = {}  # it was made after the front door asked last
            assert (await front.client.post("/v1/completions", json=STREAM)).status_code == 200
            assert len(records(front)) == 1


async def test_metrics_of_requests_and_of_replicas() -> None:
    with replicas([CHUNK, comment(USED) + DONE]) as (one,):
        async with door(one.beat) as front:
            await front.client.post("/v1/completions", json=STREAM)
            seen = samples(front.metering.metrics)
            assert seen["llmos_model_requests_total"] == {("m", "tenant-1", "200"): 1}
            assert seen["llmos_completion_tokens_total"] == {("m", "tenant-1"): 2}
            assert seen["llmos_replica_draining"] == {("m", "r0"): 0}
