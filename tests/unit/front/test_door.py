"""Bodies of requests on their way through the front door: as they came, or written again where they must be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmos.front import door as module
from llmos.heartbeat import Route
from llmos.openai.sse import DONE, sse
from tests.unit.front.test_relay import PATH
from tests.unit.front.world import BODY, door, replicas

ANSWER = [sse({"n": 1}), DONE]
JSON = {"Content-Type": "application/json"}
TEXTS = ("x", "é", "힣", "漢字 🦙", 'a "quoted" \\ line\n', "\\ud800 is no escape here", "\0")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_replica_gets_is_what_was_asked(stream: bool) -> None:
    asked = [{**BODY, "prompt": text, "stream": stream, "suffix": None, "seed": 2**63} for text in TEXTS]
    written: list[bytes] = []
    for body in asked:
        written += [json.dumps(body).encode(), json.dumps(body, ensure_ascii=False, indent=1).encode()]
    plain = json.dumps(asked[0])
    written += [plain.encode("utf-16"), plain.encode("utf-8-sig"), b" \n" + plain.encode(), plain.encode() + b"\r\n "]
    with replicas(ANSWER) as (replica,):
        async with door(replica.beat) as one:
            for raw in written:
                found = await one.client.post(PATH, content=raw, headers=JSON)
                assert found.status_code == 200, (raw, found.text)
        assert replica.prompts == [*(body for body in asked for _ in range(2)), *[asked[0]] * 4]


async def test_most_bodies_are_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> bytes:
        raise AssertionError("it was written again")

    with replicas(ANSWER) as (replica,):
        async with door(replica.beat) as one:
            monkeypatch.setattr(module, "_body", write)
            for text in ("x", "é", "漢字 🦙"):
                raw = json.dumps({**BODY, "prompt": text}, ensure_ascii=False).encode()
                assert (await one.client.post(PATH, content=raw, headers=JSON)).status_code == 200


async def test_a_replica_knows_the_service_by_its_own_name() -> None:
    with replicas(ANSWER) as (replica,):
        async with door(replica.beat, routes={"m": Route(7, aliases=("prod",))}) as one:
            assert (await one.client.post(PATH, json={**BODY, "model": "prod"})).status_code == 200
        assert replica.prompts == [BODY]


@pytest.mark.parametrize("half", [rb"\ud800", b"\xed\xa0\x80", rb"\uD83E x", rb"\udd99"])
@pytest.mark.parametrize("stream", [b"false", b"true"])
async def test_half_a_surrogate_pair_is_refused_however_it_is_written(half: bytes, stream: bytes) -> None:
    raw = b'{"model": "m", "prompt": "%s", "stream": %s}' % (half, stream)
    with replicas(ANSWER) as (replica,):
        async with door(replica.beat) as one:
            found = await one.client.post(PATH, content=raw, headers=JSON)
            assert found.status_code == 400 and "Unicode" in found.json()["error"]["message"]
        assert replica.prompts == []


async def test_of_a_field_that_comes_twice_the_last_counts_everywhere() -> None:
    raw = b'{"model": "other", "prompt": "first", "prompt": "last", "max_tokens": 9, "max_tokens": 3, "model": "m"}'
    with replicas(ANSWER) as (replica,):
        async with door(replica.beat) as one:
            assert (await one.client.post(PATH, content=raw, headers=JSON)).status_code == 200
        expected: dict[str, Any] = {"model": "m", "prompt": "last", "max_tokens": 3}
        assert replica.prompts == [expected]
