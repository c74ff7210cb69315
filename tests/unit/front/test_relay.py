"""Requests through the front door to replicas that answer, refuse, drain, break off and hang."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from dataclasses import replace

import httpx
import pytest

from llmos.errors import AuthError, CapacityError, ContextLengthError, EngineError, LlmosError
from llmos.front.caller import HEADER, place, sign
from llmos.front.fleet import News
from llmos.front.relay import DRAINING
from llmos.heartbeat import Heartbeat, Route
from llmos.openai.caller import Caller
from llmos.openai.sse import DONE, sse
from tests.unit.front.world import BODY, HANG, SECRET, Door, door, replicas

ANSWER = [sse({"n": number}) for number in range(3)] + [DONE]
PATH, STREAM = "/v1/completions", {**BODY, "stream": True}


async def streamed(one: Door) -> str:
    found = await one.client.post(PATH, json=STREAM)
    assert found.status_code == 200, found.text
    return found.text


async def test_a_stream_arrives_as_it_was_sent_and_the_replica_knows_who_asks() -> None:
    with replicas(ANSWER) as (replica,):
        async with door(replica.beat) as one:
            assert await streamed(one) == b"".join(ANSWER).decode()
            assert replica.callers == [Caller("key-1", "tenant-1", "req")]
            assert replica.prompts == [STREAM]
            assert (await one.client.post(PATH, json=BODY)).content == b"".join(ANSWER[:1])


async def test_connections_to_replicas_are_kept() -> None:
    with replicas(ANSWER) as (replica,):
        async with door(replica.beat) as one:
            for _ in range(4):
                await streamed(one)
                assert (await one.client.post(PATH, json=BODY)).status_code == 200
            assert len(replica.server.server_state.connections) == 1
            await asyncio.gather(*(streamed(one) for _ in range(4)))
            kept = len(replica.server.server_state.connections)
            assert 1 < kept <= 4
            await streamed(one)
            assert len(replica.server.server_state.connections) == kept


async def test_pieces_come_when_they_are_sent() -> None:
    with replicas([ANSWER[0], HANG]) as (replica,):
        async with (
            door(replica.beat) as one,
            one.client.stream("POST", PATH, json=STREAM) as response,
        ):
            async for text in response.aiter_text():
                assert text == ANSWER[0].decode()
                break


async def test_events_are_passed_on_whole() -> None:
    with replicas([b"data: {", b"}\n", b"\ndata: 2\n\nda", b"ta: 3\n\n"]) as (replica,):
        async with (
            door(replica.beat) as one,
            one.client.stream("POST", PATH, json=STREAM) as response,
        ):
            pieces = [piece async for piece in response.aiter_raw()]
    assert all(piece.endswith(b"\n\n") for piece in pieces)
    assert b"".join(pieces) == b"data: {}\n\ndata: 2\n\ndata: 3\n\n"


@pytest.mark.parametrize(
    "error", [ContextLengthError("too long", param="prompt"), CapacityError("full", retry_after_s=7)]
)
async def test_errors_of_the_replica_are_the_client_s(error: LlmosError) -> None:
    with replicas([error], [error]) as both:
        async with door(*(replica.beat for replica in both)) as one:
            for stream in (False, True):
                found = await one.client.post(PATH, json={**BODY, "stream": stream})
                assert found.status_code == error.http_status
                assert found.headers.get("retry-after") == ("7" if isinstance(error, CapacityError) else None)
                assert error.message in found.json()["error"]["message"]
            assert sum(len(replica.callers) for replica in both) == 2  # nobody else was asked


async def test_a_front_door_that_is_not_let_in_is_no_key_that_is_wrong() -> None:
    with replicas([AuthError("not signed by this cluster's front door")], ANSWER) as (stranger, _):
        async with door(stranger.beat) as one:
            found = await one.client.post(PATH, json=BODY)
            assert found.status_code == 503


async def test_text_that_is_no_unicode_is_the_client_s_mistake() -> None:
    body = b'{"model": "m", "prompt": "\\ud800"}'
    with replicas(ANSWER) as (replica,):
        async with door(replica.beat) as one:
            found = await one.client.post(PATH, content=body, headers={"content-type": "application/json"})
            assert found.status_code == 400, found.text


async def test_who_refuses_or_drains_is_passed_over() -> None:
    with socket.socket() as bound, replicas(ANSWER, ANSWER) as (draining, other):
        bound.bind(("127.0.0.1", 0))
        nobody = Heartbeat("m", "1", "nobody", f"http://127.0.0.1:{bound.getsockname()[1]}")
        draining.drain.closing = True
        async with door(nobody, draining.beat, replace(other.beat, waiting=9)) as one:
            await streamed(one)  # connections are there
            began_s = time.monotonic()
            for _ in range(20):
                assert (await streamed(one)).endswith("[DONE]\n\n")
            assert time.monotonic() - began_s < 2.0
            assert (len(draining.callers), len(other.callers)) == (0, 21)
            signed = {HEADER: sign(Caller("k"), SECRET, place(draining.url, PATH))}
            refused = await one.client.post(draining.url + PATH, json=BODY, headers=signed)
            assert (refused.status_code, refused.headers[DRAINING]) == (503, "1")


async def test_a_replica_that_dies_before_it_answers_is_replaced() -> None:
    with replicas([HANG], ANSWER) as (dying, other):
        async with door(dying.beat, replace(other.beat, waiting=9)) as one:
            asked = asyncio.create_task(streamed(one))
            await asyncio.to_thread(dying.hanging.wait, 5)
            dying.cut()
            assert (await asked).endswith("[DONE]\n\n") and len(other.callers) == 1  # test_failover.py says how soon


async def test_a_replica_whose_engine_has_failed_is_passed_over_and_a_request_that_breaks_engines_is_not() -> None:
    failed = EngineError("the engine is closed")
    with replicas([failed], ANSWER) as (failing, other):
        async with door(failing.beat, replace(other.beat, waiting=9)) as one:
            assert (await streamed(one)).endswith("[DONE]\n\n") and len(failing.callers) == 1
    with replicas(*[[failed]] * 4) as four:
        async with door(*(replica.beat for replica in four)) as one:
            found = await one.client.post(PATH, json=STREAM)
            assert found.status_code == 503 and "3 replicas of `m` failed" in found.json()["error"]["message"]
            assert sum(len(replica.callers) for replica in four) == 3


async def test_a_stream_that_breaks_off_ends_with_an_error_event() -> None:
    with replicas([*ANSWER[:2], b"data: {half", HANG], ANSWER) as (dying, other):
        async with door(dying.beat, replace(other.beat, waiting=9)) as one:
            asked = asyncio.create_task(streamed(one))
            await asyncio.to_thread(dying.hanging.wait, 5)
            dying.cut()
            *events, last, end = (await asked).split("\n\n")
            assert events == [event.decode().strip() for event in ANSWER[:2]] and end == ""
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine"
            assert other.callers == []
            assert (await streamed(one)).endswith("[DONE]\n\n") and len(other.callers) == 1


async def test_a_replica_that_hangs_is_given_up() -> None:
    with replicas([HANG], [ANSWER[0], HANG], ANSWER) as (first, second, third):
        async with door(first.beat, replace(second.beat, waiting=5), replace(third.beat, waiting=9)) as one:
            before = asyncio.create_task(streamed(one))  # nothing of its answer has come: another one is asked
            await asyncio.to_thread(first.hanging.wait, 5)
            async with one.client.stream("POST", PATH, json=STREAM) as response:
                pieces = response.aiter_raw()
                assert await anext(pieces) == ANSWER[0]
                one.relay.look()  # it says that it lives
                stalled = [replace(replica.beat, stalled=True) for replica in (first, second)]
                one.fleet.learn(News({"m": Route(7)}, [*stalled, third.beat]))
                one.relay.look()
                assert b'"error"' in await anext(pieces)
            assert (await before).endswith("[DONE]\n\n")


async def test_a_client_that_leaves_ends_its_request() -> None:
    with replicas([ANSWER[0], HANG]) as (replica,):
        async with door(replica.beat) as one:
            async with one.client.stream("POST", PATH, json=STREAM) as response:
                await anext(response.aiter_raw())
            assert await asyncio.to_thread(replica.closed.wait, 1)
            replica.script, _ = [HANG], replica.closed.clear()
            with pytest.raises(httpx.ReadTimeout):
                await one.client.post(PATH, json=BODY, timeout=0.2)
            assert await asyncio.to_thread(replica.closed.wait, 1)


async def test_a_replica_lets_in_whom_the_front_door_sends_and_nobody_else() -> None:
    with replicas(ANSWER) as (replica,):
        async with httpx.AsyncClient(base_url=replica.url) as client:
            used = {HEADER: sign(Caller("k"), SECRET, place(replica.url, PATH))}
            assert (await client.post(PATH, json=BODY, headers=used)).status_code == 200
            guessed = {HEADER: sign(Caller("k"), b"guessed", place(replica.url, PATH))}
            for headers in ({}, {HEADER: "x"}, used, guessed, {"Authorization": "Bearer x"}):
                for method, path in (("POST", PATH), ("GET", "/v1/models"), ("GET", "/v1/openapi.json")):
                    found = await client.request(method, path, headers=headers, json=BODY if method == "POST" else None)
                    assert found.status_code == 401, (method, path, headers)
        assert len(replica.callers) == 1


async def test_a_draining_replica_waits_for_those_that_run() -> None:
    with replicas([ANSWER[0], HANG]) as (replica,):
        async with (
            door(replica.beat) as one,
            one.client.stream("POST", PATH, json=STREAM) as response,
        ):
            pieces = response.aiter_raw()
            await anext(pieces)
            assert not await asyncio.to_thread(replica.drain.wait, 0.1)
        assert await asyncio.to_thread(replica.drain.wait, 2)


async def test_services_that_cannot_answer_say_when_to_ask_again() -> None:
    async with door(services=("m",)) as one:
        found = await one.client.post(PATH, json=BODY)
        assert found.status_code == 503 and int(found.headers["retry-after"]) >= 1
        assert (await one.client.post(PATH, json={**BODY, "model": "x"})).status_code == 404


async def test_what_a_replica_says_in_no_known_form_is_an_error_of_the_engine() -> None:
    with replicas([ValueError("a bug")]) as (replica,):
        async with door(replica.beat) as one:
            found = await one.client.post(PATH, json=BODY)
            assert found.status_code == 503 and "answered 500" in found.json()["error"]["message"]


async def test_forms_of_answers_reach_the_replica_as_they_were_asked_for() -> None:
    schema = {"type": "object"}
    chat = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    forms = [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"structured_outputs": {"json": schema}},
    ]
    with replicas([ANSWER[0]]) as (replica,):
        async with door(replica.beat) as one:
            for form in forms:
                found = await one.client.post("/v1/chat/completions", json={**chat, **form})
                assert found.status_code == 200, found.text
            assert replica.prompts == [{**chat, **form} for form in forms]
