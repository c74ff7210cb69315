"""Requests and the replicas they are sent to: where their prefix is, each counted until it is over."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from llmos.errors import EngineError
from llmos.front import prompts as module
from llmos.front.turns import ANSWER_TOKENS, Question
from llmos.heartbeat import Route
from llmos.infer.prefix import BLOCK_TOKENS
from llmos.openai.caller import Caller
from llmos.openai.schema import CompletionRequest
from llmos.openai.sse import DONE, sse
from tests.unit.front.world import BODY, HANG, Door, Replica, door, replicas
from tests.unit.models.test_tokenizer import TOKENIZER

ANSWER = [sse({"n": number}) for number in range(3)] + [DONE]
PATH = "/v1/completions"
TEXTS = [f"class Number{number}:\n" * 20 for number in range(8)]


@pytest.fixture
def model(tmp_path: Path) -> str:
    TOKENIZER.save(tmp_path)
    return str(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys for which prompts have been read."""
    made: list[str] = []
    real = module._read
    monkeypatch.setattr(module, "_read", lambda *given: made.append(given[2]) or real(*given))
    return made


@asynccontextmanager
async def routed(*there: Replica, model: str, blocks: int = 1000) -> AsyncIterator[Door]:
    """A front door that has the tokenizer of ``model``, if it can be loaded."""
    beats = [replace(one.beat, blocks=blocks) for one in there]
    async with door(*beats, routes={"m": Route(7, weights={"1": 1.0}, models={"1": model})}) as one:
        one.held.look()
        await one.relay._prompts.load(model)
        yield one


async def ask(one: Door, prompt: str, **fields: object) -> None:
    found = await one.client.post(PATH, json={**BODY, "prompt": prompt, "stream": True, **fields})
    assert found.status_code == 200 and found.text.endswith("[DONE]\n\n"), found.text


def asked(there: list[Replica], text: str) -> list[str]:
    """Who was asked for a prompt that begins with ``text``, once for each time."""
    return [one.name for one in there for prompt in one.prompts if prompt["prompt"].startswith(text)]  # type: ignore[index]


def open_tokens(one: Door) -> list[int]:
    return [replica.open for replica in one.fleet.router._replicas.values()]


def question(**fields: object) -> Question:
    request = CompletionRequest.model_validate({**BODY, **fields})
    return Question("m", PATH, b"{}", Caller("key-1"), False, request)


async def test_one_prefix_goes_to_one_replica_and_many_to_all(model: str) -> None:
    with replicas(ANSWER, ANSWER, ANSWER) as there:
        async with routed(*there, model=model) as one:
            for turn in range(3):
                for text in TEXTS:
                    await ask(one, text + f"    turn = {turn}\n" * turn)
            homes = [asked(there, text) for text in TEXTS]
            assert all(len(home) == 3 and len(set(home)) == 1 for home in homes), homes
            assert len({home[0] for home in homes}) > 1
            assert open_tokens(one) == [0, 0, 0]


async def test_what_a_lost_replica_had_goes_to_the_others(model: str) -> None:
    with replicas(ANSWER, ANSWER) as there:
        async with routed(*there, model=model) as one:
            await ask(one, TEXTS[0])
            (home,) = asked(there, TEXTS[0])
            other = next(replica for replica in there if replica.name != home)
            one.beats[:] = [beat for beat in one.beats if beat.replica == other.name]
            await one.fleet.refresh()
            await ask(one, TEXTS[0])
            assert len(other.callers) == 1 and set(one.fleet.router._replicas) == {other.name}


async def test_one_that_drains_or_stalls_is_not_asked_whatever_it_holds(model: str) -> None:
    with replicas(ANSWER, ANSWER) as there:
        async with routed(*there, model=model) as one:
            beats = list(one.beats)
            for change in ({"draining": True}, {"stalled": True}):
                one.beats[:] = beats
                await one.fleet.refresh()
                before = Counter(asked(there, TEXTS[0]))
                await ask(one, TEXTS[0])
                (home,) = Counter(asked(there, TEXTS[0])) - before
                one.beats[:] = [replace(beat, **change) if beat.replica == home else beat for beat in beats]  # type: ignore[arg-type]
                await one.fleet.refresh()
                await ask(one, TEXTS[0])
                assert Counter(asked(there, TEXTS[0]))[home] == before[home] + 1


async def test_a_single_replica_s_prompts_are_not_read(model: str, reads: list[str]) -> None:
    with replicas(ANSWER, ANSWER) as there:
        async with routed(there[0], model=model) as one:
            await ask(one, TEXTS[0])
            assert not reads and open_tokens(one) == [0]
            one.beats.append(replace(there[1].beat, blocks=1000))
            await one.fleet.refresh()
            await ask(one, TEXTS[0])
            assert reads == ["key-1"]


async def test_a_tokenizer_is_loaded_when_there_is_a_choice_and_nobody_waits_for_it(
    model: str, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go, loads, real = threading.Event(), list[str](), module._load
    monkeypatch.setattr(module, "_load", lambda where: loads.append(where) or (may_go.wait(10) and real(where)))
    with replicas(ANSWER, ANSWER) as there:
        route = Route(7, weights={"1": 1.0}, models={"1": model})
        async with door(replace(there[0].beat, blocks=9), routes={"m": route}) as one:
            one.held.look()
            await asyncio.sleep(0.01)
            assert not loads
            one.beats.append(replace(there[1].beat, blocks=9))
            await one.fleet.refresh()
            one.held.look()
            one.held.look()
            await ask(one, TEXTS[0])
            assert loads == [model] and not reads
            may_go.set()
            await one.relay._prompts.load(model)
            await ask(one, TEXTS[0])
            assert len(reads) == 1


@pytest.mark.parametrize("config", [None, '{"model_type": "bert"}'])
async def test_without_a_tokenizer_the_least_busy_is_asked(
    tmp_path: Path, reads: list[str], config: str | None
) -> None:
    if config:
        (tmp_path / "config.json").write_text(config)
        TOKENIZER.save(tmp_path)
    with replicas([ANSWER[0], HANG], ANSWER) as there:
        async with routed(*there, model=str(tmp_path)) as one:
            async with one.client.stream("POST", PATH, json={**BODY, "stream": True}) as response:
                pieces = response.aiter_raw()  # kept: without it the stream would be closed
                await anext(pieces)
                for text in TEXTS[:4]:
                    await ask(one, text)
            assert (len(there[0].callers), len(there[1].callers)) == (1, 4) and not reads


async def test_replicas_without_a_cache_get_no_prompts_read(model: str, reads: list[str]) -> None:
    with replicas(ANSWER, ANSWER) as there:
        async with routed(*there, model=model, blocks=0) as one:
            await ask(one, TEXTS[0])
            assert not reads


async def test_a_session_stays_and_another_key_s_is_another() -> None:
    with replicas(ANSWER, ANSWER, ANSWER) as there:
        async with door(*(one.beat for one in there)) as one:
            for number in range(6):
                for text in TEXTS[:2]:
                    await ask(one, f"{number} {text}", **{"user" if number % 2 else "prompt_cache_key": "u"})
            assert max(len(replica.callers) for replica in there) == 12
    own = question(user="u")
    assert own.session == question(prompt_cache_key="u", user="v").session != question(user="v").session
    assert replace(own, caller=Caller("key-2")).session != own.session != replace(own, service="n").session
    assert question().session == replace(own, request=None).session == ""


def test_how_long_answers_are_expected_to_be() -> None:
    assert question().answer == ANSWER_TOKENS and question(max_tokens=9, n=2, prompt=["a", "b"]).answer == 36
    assert question(max_tokens=10**6).answer == ANSWER_TOKENS


async def test_a_prompt_that_cannot_be_read_is_the_replica_s_affair(model: str) -> None:
    refusal = EngineError("no such token")
    with replicas(ANSWER, ANSWER) as there:
        async with routed(*there, model=model) as one:
            found = await one.client.post(PATH, json={**BODY, "prompt": [2**80] * 2 * BLOCK_TOKENS, "stream": True})
            assert found.status_code == 200
            there[0].script = there[1].script = [refusal]
            assert (await one.client.post(PATH, json=BODY)).status_code == 503
            assert open_tokens(one) == [0, 0]


async def test_counts_are_nothing_after_all_that_can_go_wrong(model: str) -> None:
    with replicas([ANSWER[0], HANG], [HANG]) as there:
        async with routed(*there, model=model) as one:
            await _leave(one)
            assert sum(open_tokens(one)) == 0
            for replica in there:
                replica.drain.closing = True  # it is passed over, and then there is nobody
            assert (await one.client.post(PATH, json=BODY)).status_code == 503
            assert sum(open_tokens(one)) == 0


async def _leave(one: Door) -> None:
    """Requests whose clients go away: before the first byte, after it, and at once."""

    async def gone(after_s: float) -> None:
        with suppress(httpx.ReadTimeout):
            await one.client.post(PATH, json={**BODY, "prompt": TEXTS[0], "stream": True}, timeout=after_s)

    pieces = one.relay.pieces(replace(question(prompt=TEXTS[0], stream=True), body=b"{}"))
    await pieces.aclose()  # which had not begun
    running = [asyncio.create_task(gone(0.05 + 0.1 * number)) for number in range(8)]
    while not sum(open_tokens(one)):
        await asyncio.sleep(0.005)
    await asyncio.gather(*running)
    for _ in range(200):
        if not sum(open_tokens(one)):
            break
        await asyncio.sleep(0.01)


async def test_shares_of_revisions_go_before_prefixes(model: str) -> None:
    with replicas(ANSWER, ANSWER) as there:
        beats = [replace(one.beat, revision=str(at), blocks=1000) for at, one in enumerate(there)]
        route = Route(7, weights={"0": 0.5, "1": 0.5}, models={"0": model, "1": model})
        async with door(*beats, routes={"m": route}) as one:
            for _ in range(40):
                await ask(one, TEXTS[0])
            assert min(len(replica.callers) for replica in there) >= 5
