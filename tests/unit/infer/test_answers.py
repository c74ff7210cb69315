"""What an engine answers: what transformers would, whoever else is being answered."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
import torch
import transformers

from tests.unit.infer.small import request, running, whole

PROMPTS = [(5, 6, 7), (300,), tuple(range(40, 90)), (9, 8), (17,) * 20, (100, 200, 300, 31, 32)]


@pytest.mark.parametrize("runner", ["torch", "native"])
async def test_greedy_tokens_are_those_of_transformers(model_dir: Path, runner: str) -> None:
    theirs = transformers.LlamaForCausalLM.from_pretrained(model_dir).eval()
    async with running(model_dir, runner=runner) as engine:
        answers = await asyncio.gather(*[whole(engine, request(p, ignore_eos=False, max_tokens=64)) for p in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        inputs = torch.tensor([prompt])
        expected = theirs.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=64, do_sample=False, pad_token_id=0
        )
        assert list(answer.token_ids) == expected[0, len(prompt) :].tolist()
    assert len({answer.token_ids for answer in answers}) == len(PROMPTS)  # the prompts matter


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_an_answer_does_not_depend_on_its_neighbours(model_dir: Path, temperature: float) -> None:
    asked = [
        request(p, temperature=temperature, seed=7, top_p=0.9, max_tokens=5 + 3 * i) for i, p in enumerate(PROMPTS)
    ]
    async with running(model_dir) as engine:
        alone = [await whole(engine, one) for one in asked]
        together = await asyncio.gather(*[whole(engine, one) for one in asked])
    assert [event.cached_tokens for event in together] == [16 * ((len(p) - 1) // 16) for p in PROMPTS]
    assert alone == [dataclasses.replace(event, cached_tokens=0) for event in together]


async def test_an_answer_does_not_depend_on_when_it_came(model_dir: Path) -> None:
    asked = [request(p, temperature=1.0, seed=i, max_tokens=30) for i, p in enumerate(PROMPTS)]

    async def late(number: int) -> tuple[int, ...]:
        await asyncio.sleep(0.007 * number)
        return (await whole(engine, asked[number])).token_ids

    async with running(model_dir) as engine:
        ragged = await asyncio.gather(*[late(number) for number in range(len(asked))])
        alone = [(await whole(engine, one)).token_ids for one in asked]
    assert ragged == alone


async def test_a_long_prompt_is_read_in_parts_to_the_same_effect(model_dir: Path) -> None:
    asked = [request(tuple(range(3, 203)), max_tokens=20), request((4, 5), max_tokens=20)]
    answers = []
    for budget in (512, 16):
        async with running(model_dir, token_budget=budget) as engine:
            answers.append(await asyncio.gather(*[whole(engine, one) for one in asked]))
    assert answers[0] == answers[1]


async def test_end_tokens_end_the_answer_unless_told_otherwise(model_dir: Path) -> None:
    """A token that the answer has anyway is declared to be an end."""
    async with running(model_dir) as engine:
        full = await whole(engine, request(max_tokens=12))
        engine._ends = frozenset({full.token_ids[5]})
        first = full.token_ids.index(full.token_ids[5])
        ended = await whole(engine, request(max_tokens=12, ignore_eos=False))
        assert ended.token_ids == full.token_ids[: first + 1]
        assert (ended.finish_reason, full.finish_reason) == ("stop", "length")
        assert ended.text == engine.tokenizer.decode(full.token_ids[:first])
        assert (await whole(engine, request(max_tokens=12))).token_ids == full.token_ids
