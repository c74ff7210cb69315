"""The engine's own life: its queue, requests that go away, failures, the end."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmos.errors import CapacityError, DeadlineError, EngineError, ModelError, UsageError
from llmos.infer.dtypes import pick_dtype
from llmos.infer.grammar import Grammars
from llmos.infer.local import LocalEngine
from llmos.infer.request import Grammar, TokenEvent
from llmos.infer.sampling import Sampler
from llmos.infer.torch_runner import TorchRunner
from llmos.models import Tokenizer
from tests.unit.infer.small import CONTEXT, request, running, whole

LONG = CONTEXT - 3


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


def _idle(engine: LocalEngine) -> bool:
    found = engine.stats()
    return (found["running"], found["waiting"], found["blocks"] - found["blocks_free"]) == (0, 0, 0)


async def test_a_full_queue_refuses_and_says_when_to_come_back(model_dir: Path) -> None:
    async with running(model_dir, max_batch=2, max_queue=3) as engine:
        tasks = [asyncio.create_task(whole(engine, request(max_tokens=LONG))) for _ in range(5)]
        await _until(lambda: engine.stats()["waiting"] == 3)
        with pytest.raises(CapacityError, match="2 requests are running and 3 waiting") as caught:
            await whole(engine, request())
        assert caught.value.retry_after_s >= 1
        tasks[4].cancel()
        await asyncio.wait([tasks[4]])
        assert (await whole(engine, request())).completion_tokens == 12  # it took the place of the one that left
        assert {(await task).completion_tokens for task in tasks[:4]} == {LONG}
        await _until(lambda: _idle(engine))


async def test_an_end_token_that_the_model_does_not_have_harms_nobody(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Tokenizer.load

    def with_more_tokens(directory: Path) -> Tokenizer:
        tokenizer = load(directory)
        tokenizer.stop_ids |= {5000}
        return tokenizer

    monkeypatch.setattr(Tokenizer, "load", with_more_tokens)
    async with running(model_dir) as engine:
        answer = await whole(engine, request(min_tokens=3, ignore_eos=False, max_tokens=5))
        assert answer.completion_tokens >= 3


async def test_a_full_queue_is_shared_by_tenants(model_dir: Path) -> None:
    """Whoever has fewest places gets those of who has most, as long as nothing has been answered there."""

    async def ask(tenant: str, number: int) -> str:
        asked = dataclasses.replace(request((5 + number,), max_tokens=LONG), tenant=tenant)
        try:
            return f"{tenant}{(await whole(engine, asked)).completion_tokens}"
        except CapacityError:
            return f"{tenant} refused"

    async with running(model_dir, max_batch=2, max_queue=6) as engine:
        crowd = [asyncio.create_task(ask("a", n)) for n in range(8)]
        await _until(lambda: engine.stats()["waiting"] == 6)
        assert await ask("a", 9) == "a refused"
        others = [asyncio.create_task(ask("b", n)) for n in range(5)]
        assert await others[4] == "b refused"  # they have as many as the others by then
        assert engine.stats()["running"] + engine.stats()["waiting"] == 8
        assert [await task for task in crowd] == [f"a{LONG}"] * 4 + ["a refused"] * 4
        assert [await task for task in others[:4]] == [f"b{LONG}"] * 4
        await _until(lambda: _idle(engine))


async def test_leaving_frees_the_row_and_disturbs_nobody(model_dir: Path) -> None:
    async with running(model_dir) as engine:
        expected = (await whole(engine, request(max_tokens=60))).token_ids
        stays = asyncio.create_task(whole(engine, request(max_tokens=60)))
        leaving = engine.generate(request((9,), max_tokens=LONG))
        await anext(leaving)
        await leaving.aclose()
        cancelled = asyncio.create_task(whole(engine, request((8,), max_tokens=LONG)))
        await _until(lambda: engine.stats()["running"] >= 1)
        cancelled.cancel()
        assert (await stays).token_ids == expected
        await _until(lambda: _idle(engine))
        assert engine.stats()["completion_tokens"] < 60 + 60 + LONG


async def test_abort_ends_the_answer(model_dir: Path) -> None:
    async with running(model_dir) as engine:
        asked = request(max_tokens=LONG)
        seen: list[TokenEvent] = []
        async for event in engine.generate(asked):
            seen.append(event)
            await engine.abort(asked.id)
        assert 1 <= len(seen) <= 2
        assert seen[-1].finish_reason is None
        await engine.abort("nobody")
        await _until(lambda: _idle(engine))


async def test_one_that_fails_harms_no_other(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = Sampler.verify

    def spoiled(self: Sampler, asked: Sequence[tuple[str, Sequence[int]]], logits_LV: Tensor) -> list[Any]:
        for row, (id, _) in enumerate(asked):
            state = self._states[id]
            if state.count == 3 and state.params.seed == 66:
                logits_LV[row] = math.nan
        return verify(self, asked, logits_LV)

    async with running(model_dir) as engine:
        expected = await whole(engine, request((5,)))
        monkeypatch.setattr(Sampler, "verify", spoiled)
        good, bad, last = await asyncio.gather(
            *[whole(engine, request((5,), seed=seed)) for seed in (1, 66, 2)], return_exceptions=True
        )
        assert isinstance(good, TokenEvent) and isinstance(last, TokenEvent)
        assert good.token_ids == last.token_ids == expected.token_ids
        assert isinstance(bad, EngineError) and "not numbers" in bad.message
        assert engine.stats()["healthy"]
        await _until(lambda: _idle(engine))


async def test_an_engine_that_fails_tells_everyone_and_stays_failed(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(model_dir, max_batch=2) as engine:
        tasks = [asyncio.create_task(whole(engine, request(max_tokens=LONG))) for _ in range(4)]
        await _until(lambda: engine.stats()["running"] == 2)

        def broken(_: object) -> None:
            raise RuntimeError("the device is gone")

        monkeypatch.setattr(TorchRunner, "finish", broken)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, EngineError) and "the device is gone" in r.message for r in results)
        assert engine.stats()["healthy"] is False
        assert "the device is gone" in engine.stats()["error"]
        with pytest.raises(EngineError, match="answers no more"):
            await whole(engine, request())


async def test_a_deadline_ends_the_answer_and_frees_its_blocks(model_dir: Path) -> None:
    async with running(model_dir) as engine:
        late = dataclasses.replace(request(max_tokens=LONG), deadline_s=0.05)
        with pytest.raises(DeadlineError, match="not complete by its deadline"):
            await whole(engine, late)
        await _until(lambda: _idle(engine))


async def test_an_engine_that_is_lost_while_nobody_asks_says_so(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(model_dir) as engine:
        await whole(engine, request())

        def gone(_: object) -> None:
            raise EngineError("rank 1 is gone")

        monkeypatch.setattr(TorchRunner, "watch", gone, raising=False)
        await _until(lambda: not engine.stats()["healthy"])
        assert "rank 1 is gone" in engine.stats()["error"]


@pytest.mark.parametrize("where", ["behind a twin", "in a grammar", "behind a slow step"])
async def test_a_deadline_is_kept_wherever_the_request_is(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Nothing frees the place that it waits for before the end of the test."""
    release, grammar, finish = threading.Event(), Grammar("regex", "a"), TorchRunner.finish
    if where == "in a grammar":
        monkeypatch.setattr(Grammars, "_compile", lambda *_: release.wait(20))
    prompt = tuple(range(3, 203))
    try:
        async with running(model_dir, max_batch=1, token_budget=1) as engine:
            if where == "behind a slow step":
                monkeypatch.setattr(TorchRunner, "finish", lambda _: release.wait(20))
            elif where == "behind a twin":  # which reads its prompt for 4 s
                monkeypatch.setattr(TorchRunner, "finish", lambda runner: time.sleep(0.02) or finish(runner))
            first = asyncio.create_task(whole(engine, request(prompt, max_tokens=2)))
            await _until(lambda: engine.stats()["running"] + engine.stats()["waiting"] == 1)
            asked = request(grammar=grammar, ignore_eos=False) if where == "in a grammar" else request(prompt)
            began_s = time.monotonic()
            with pytest.raises(DeadlineError, match="0 of 12 tokens"):
                await whole(engine, dataclasses.replace(asked, deadline_s=0.02))
            assert time.monotonic() - began_s < 1 and not first.done()
            first.cancel()
            release.set()
            if where != "behind a slow step":
                await _until(lambda: _idle(engine))
    finally:
        release.set()


async def test_a_prompt_is_read_once_for_each_tenant(model_dir: Path) -> None:
    prompt = tuple(range(3, 103))
    async with running(model_dir) as engine:
        expected = (await whole(engine, request(prompt))).token_ids
        for tenant, cached in (("", 96), ("other", 0), ("other", 96)):
            before = engine.stats()["prefix_tokens"]
            found = await whole(engine, dataclasses.replace(request(prompt), tenant=tenant))
            assert found.token_ids == expected
            assert engine.stats()["prefix_tokens"] - before == cached


async def test_closing_ends_what_runs_and_waits(model_dir: Path) -> None:
    others = set(threading.enumerate())  # of engines of other tests
    async with running(model_dir, max_batch=1) as engine:
        tasks = [asyncio.create_task(whole(engine, request(max_tokens=LONG))) for _ in range(3)]
        await _until(lambda: engine.stats()["waiting"] == 2)
        await asyncio.to_thread(engine.close)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, EngineError) and "closed" in result.message for result in results)
        left = {thread.name for thread in threading.enumerate() if thread not in others}
        assert not any(name.startswith("llmos") for name in left - {"llmos-native"})  # which compiles for the next too
        engine.close()  # closing twice is closing


async def test_who_reads_slowly_gets_everything_in_fewer_events(model_dir: Path) -> None:
    async with running(model_dir) as engine:
        expected = await whole(engine, request(max_tokens=50, logprobs=1))
        events = []
        async for event in engine.generate(request(max_tokens=50, logprobs=1)):
            events.append(event)
            await asyncio.sleep(0.05)
        assert len(events) < 25
        assert sum((event.token_ids for event in events), ()) == expected.token_ids
        assert "".join(event.text for event in events) == expected.text
        assert sum((event.logprobs for event in events), ()) == expected.logprobs
        assert events[-1].finish_reason == "length"


async def test_several_answers_of_one_prompt_read_it_once(model_dir: Path) -> None:
    prompt = tuple(range(3, 103))
    asked = [request(prompt, temperature=1.0, seed=seed, max_tokens=20) for seed in range(4)]
    async with running(model_dir) as engine:
        together = await asyncio.gather(*[whole(engine, one) for one in asked])
        assert engine.stats()["prefix_tokens"] == 3 * 96
        assert [answer.cached_tokens for answer in together] == [0, 96, 96, 96]
        assert len({answer.token_ids for answer in together}) == 4
    async with running(model_dir, prefix_cache=False) as engine:
        alone = await asyncio.gather(*[whole(engine, one) for one in asked])
        assert alone == [dataclasses.replace(answer, cached_tokens=0) for answer in together]
        assert engine.stats()["prefix_tokens"] == 0


async def test_who_waits_for_a_prompt_that_is_never_read_reads_it(model_dir: Path) -> None:
    prompt = tuple(range(3, 253))
    async with running(model_dir, max_batch=1) as engine:
        busy = asyncio.create_task(whole(engine, request(max_tokens=LONG)))
        await _until(lambda: engine.stats()["running"] == 1)
        first, *others = [asyncio.create_task(whole(engine, request(prompt, max_tokens=3))) for _ in range(3)]
        await _until(lambda: engine.stats()["waiting"] == 3)
        first.cancel()
        assert {(await other).completion_tokens for other in (busy, *others)} == {LONG, 3}
        await _until(lambda: _idle(engine))


def test_wrong_arguments(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no"):
        LocalEngine(tmp_path)
    with pytest.raises(UsageError, match=f"context_length` is 9999: expected 2 to {CONTEXT}"):
        LocalEngine(model_dir, context_length=9999)
    with pytest.raises(UsageError, match="float64"):
        LocalEngine(model_dir, dtype="float64")


def test_auto_is_bfloat16_only_where_hardware_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda native=native: {"avx512_bf16": native})
        assert pick_dtype("auto", torch.device("cpu")) == expected
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16


async def test_bfloat16_answers_too(model_dir: Path) -> None:
    async with running(model_dir, dtype="bfloat16", context_length=32) as engine:
        answer = await whole(engine, request(max_tokens=None))
        assert answer.completion_tokens == 29
        assert engine.stats()["dtype"] == "bfloat16"
