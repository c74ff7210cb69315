"""What every engine promises (:class:`llmos.infer.engine.Engine`), as tests of the fixture ``engine``.

``engine`` has a small model in float32, found in ``model_dir``, a context of CONTEXT tokens, room for 4 requests and a
queue for 4 more. Each engine's tests import these by name.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from llmos.errors import CapacityError, ConflictError, ContextLengthError, DeadlineError, UsageError
from llmos.infer.local import LocalEngine
from llmos.infer.request import GenerationRequest, Grammar, SamplingParams, TokenEvent
from llmos.models import weights
from tests.unit.infer.small import CONTEXT, request, whole

ROOM = {"max_batch": 4, "max_queue": 4}
LONG = CONTEXT - 3
PROMPTS = [(5, 6, 7), (300,), tuple(range(40, 90)), (9, 8), (17,) * 20, (100, 200, 300, 31, 32)]


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def _idle(engine: LocalEngine) -> bool:
    found = engine.stats()
    return (found["running"], found["waiting"]) == (0, 0)


async def test_greedy_tokens_are_those_of_transformers(engine: LocalEngine, model_dir: Path) -> None:
    theirs = transformers.LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    answers = await asyncio.gather(*[whole(engine, request(prompt, ignore_eos=False)) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([prompt])
        settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert list(answer.token_ids) == expected[0, len(prompt) :].tolist()
        assert answer.prompt_tokens == len(prompt) and answer.completion_tokens == len(answer.token_ids)
    assert len({answer.token_ids for answer in answers}) == len(PROMPTS)  # the prompts matter


async def test_seeds_fix_answers_whatever_else_is_answered(engine: LocalEngine) -> None:
    first, other = [await whole(engine, request(temperature=1.0, seed=seed)) for seed in (1, 2)]
    crowd = [whole(engine, request(p, temperature=1.0, seed=9)) for p in PROMPTS[:3]]
    again, *_ = await asyncio.gather(whole(engine, request(temperature=1.0, seed=1)), *crowd)
    assert first.token_ids == again.token_ids != other.token_ids
    far = await whole(engine, request(temperature=1.0, seed=1 + (1 << 64)))  # seeds have 128 bits
    assert far.token_ids != first.token_ids
    drawn = {(await whole(engine, request(temperature=2.0))).token_ids for _ in range(3)}
    assert len(drawn) == 3


async def test_streamed_text_is_the_text_of_the_tokens(engine: LocalEngine) -> None:
    for seed in range(20):
        events = [e async for e in engine.generate(request(temperature=1.0, seed=seed, max_tokens=20))]
        tokens = [token for event in events for token in event.token_ids]
        assert "".join(event.text for event in events) == engine.tokenizer.decode(tokens)
        assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + ["length"]


async def test_stop_strings_cut_the_text(engine: LocalEngine) -> None:
    full = await whole(engine, request(temperature=1.0, seed=3, max_tokens=40))
    stop = full.text[11:14]
    cut = await whole(engine, request(temperature=1.0, seed=3, max_tokens=40, stop=(stop, "never there")))
    assert cut.text == full.text[: full.text.index(stop)]
    assert cut.finish_reason == "stop" and cut.completion_tokens < 40
    await _until(lambda: _idle(engine))


async def test_end_tokens_end_the_answer_and_have_no_text(engine: LocalEngine) -> None:
    full = await whole(engine, request(max_tokens=12))
    end = full.token_ids[5]
    first = full.token_ids.index(end)
    ended = await whole(engine, request(max_tokens=12, stop_token_ids=frozenset({end})))
    assert ended.token_ids == full.token_ids[: first + 1] and ended.finish_reason == "stop"
    assert ended.text == engine.tokenizer.decode(full.token_ids[:first])
    later = await whole(engine, request(max_tokens=12, stop_token_ids=frozenset({end}), min_tokens=12))
    assert later.completion_tokens == 12 and end not in later.token_ids[:11]


async def test_logprobs_are_those_of_the_model(engine: LocalEngine, model_dir: Path) -> None:
    answer = await whole(engine, request(logprobs=3, temperature=1.0, seed=1))
    tokens = torch.tensor([[5, 6, 7, *answer.token_ids]])
    with torch.no_grad():
        expected = weights.load_model(model_dir)(tokens)[0, 2:-1].log_softmax(-1)
    for place, found in enumerate(answer.logprobs):
        assert found.logprob == pytest.approx(float(expected[place, found.token]), abs=1e-3)
        assert [token for token, _ in found.top] == expected[place].topk(3).indices.tolist()
        likely = expected[place].topk(3).values.tolist()
        assert [logprob for _, logprob in found.top] == pytest.approx(likely, abs=1e-3)
    assert [found.token for found in answer.logprobs] == list(answer.token_ids)
    (bare,) = (await whole(engine, request(logprobs=0, max_tokens=1))).logprobs
    assert bare.top == ()


async def test_biases_choose_tokens(engine: LocalEngine) -> None:
    answer = await whole(engine, request(logit_bias=((44, 100.0),), max_tokens=5))
    assert answer.token_ids == (44,) * 5


async def test_an_answer_obeys_its_grammar(engine: LocalEngine) -> None:
    choice = Grammar("choice", json.dumps(["yield", "class Walk"]))
    answer = await whole(engine, request(grammar=choice, ignore_eos=False, max_tokens=40, temperature=1.0, seed=1))
    assert answer.text in ("yield", "class Walk") and answer.finish_reason == "stop"
    digits = await whole(
        engine, request(grammar=Grammar("regex", "[0-9]{3}"), ignore_eos=False, max_tokens=40, temperature=1.0, seed=2)
    )
    assert len(digits.text) == 3 and digits.text.isdecimal()


async def test_the_context_is_all_there_is(engine: LocalEngine) -> None:
    answer = await whole(engine, request((5,) * (CONTEXT - 3), max_tokens=100))
    assert (answer.completion_tokens, answer.finish_reason) == (3, "length")
    assert answer.prompt_tokens == CONTEXT - 3
    with pytest.raises(ContextLengthError, match=f"{CONTEXT} tokens, the context {CONTEXT}"):
        await whole(engine, request((5,) * CONTEXT))
    unlimited = GenerationRequest("x", (5,) * 200, SamplingParams(temperature=0, ignore_eos=True))
    assert (await whole(engine, unlimited)).completion_tokens == CONTEXT - 200


@pytest.mark.parametrize("prompt", [(), (-1,), (320,), (5, 10**9)])
async def test_prompts_that_are_none_are_refused(engine: LocalEngine, prompt: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        await whole(engine, request(prompt))


async def test_a_full_queue_refuses_and_says_when_to_come_back(engine: LocalEngine) -> None:
    tasks = [asyncio.create_task(whole(engine, request((5 + i,), max_tokens=LONG))) for i in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(CapacityError, match="as many as may") as caught:
        await whole(engine, request())
    assert caught.value.retry_after_s >= 1
    tasks[7].cancel()
    await asyncio.wait([tasks[7]])
    assert (await whole(engine, request())).completion_tokens == 12  # it took the place of the one that left
    assert {(await task).completion_tokens for task in tasks[:7]} == {LONG}
    await _until(lambda: _idle(engine))


async def test_leaving_disturbs_nobody(engine: LocalEngine) -> None:
    expected = (await whole(engine, request(max_tokens=60))).token_ids
    before = engine.stats()["completion_tokens"]
    stays = asyncio.create_task(whole(engine, request(max_tokens=60)))
    leaving = engine.generate(request((9,), max_tokens=LONG))
    await anext(leaving)
    await leaving.aclose()
    assert (await stays).token_ids == expected
    await _until(lambda: _idle(engine))
    assert engine.stats()["completion_tokens"] - before < 60 + LONG


async def test_abort_ends_the_answer(engine: LocalEngine) -> None:
    asked = request(max_tokens=LONG)
    seen: list[TokenEvent] = []
    async for event in engine.generate(asked):
        seen.append(event)
        await engine.abort(asked.id)
    assert sum(event.completion_tokens for event in seen[-1:]) < LONG and seen[-1].finish_reason is None
    await engine.abort("nobody")
    await _until(lambda: _idle(engine))


async def test_ids_are_unique_among_what_is_running(engine: LocalEngine) -> None:
    asked = request(max_tokens=LONG)
    first = engine.generate(asked)
    await anext(first)
    with pytest.raises(ConflictError, match=asked.id):
        await whole(engine, asked)
    await first.aclose()
    assert (await whole(engine, asked)).completion_tokens == LONG


async def test_what_is_late_ends_with_its_deadline(engine: LocalEngine) -> None:
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    with pytest.raises(DeadlineError):
        await whole(engine, GenerationRequest("late", (5,), sampling, deadline_s=0.001))
    await _until(lambda: _idle(engine))


async def test_tenants_and_priorities_are_answered_alike(engine: LocalEngine) -> None:
    """With a prompt that is long enough to be kept, and found again; one that differs at its end is another."""
    sampling, prompt = request().sampling, tuple(range(3, 103))
    asked = [GenerationRequest(f"of-{n}", prompt, sampling, tenant=f"t{n % 3}", priority=-(n // 3)) for n in range(6)]
    answers = await asyncio.gather(*[whole(engine, one) for one in asked])
    assert len({answer.token_ids for answer in answers}) == 1
    other = await whole(engine, request((*prompt[:-1], 7)))
    assert other.token_ids != answers[0].token_ids


async def test_a_higher_priority_comes_first(engine: LocalEngine) -> None:
    """Of two that wait for a place, though the other has asked before."""
    ended: list[str] = []

    async def ask(name: str, prompt: tuple[int, ...], priority: int, max_tokens: int) -> None:
        await whole(engine, GenerationRequest(name, prompt, request(max_tokens=max_tokens).sampling, priority=priority))
        ended.append(name)

    asked = [(f"busy {n}", (5 + n,), 0, LONG) for n in range(4)]
    asked += [("low", (9, 9), -2, 60), ("high", (8, 8), -1, 60)]
    await asyncio.gather(*[ask(*one) for one in asked])
    assert ended.index("high") < ended.index("low")


def test_answers_reach_several_event_loops(engine: LocalEngine) -> None:
    async def answers() -> list[tuple[int, ...]]:
        return [e.token_ids for e in await asyncio.gather(*[whole(engine, request()) for _ in range(3)])]

    async def leave() -> None:
        await anext(engine.generate(request(max_tokens=LONG)))

    here = asyncio.run(answers())
    asyncio.run(leave())
    assert asyncio.run(answers()) == here
