"""The engine decodes on a card what it decodes on the CPU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.unit.infer.small import request, running, whole, write_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


async def test_greedy_answers_are_those_of_the_cpu(model_dir: Path) -> None:
    prompts = [(5, 6, 7), tuple(range(1, 60)), (9,)]
    answers = []
    for device in ("cpu", "cuda"):
        async with running(model_dir, device=device) as engine:
            answers.append([(await whole(engine, request(prompt))).token_ids for prompt in prompts])
    assert answers[0] == answers[1]


async def test_a_batch_in_bf16_answers_everyone(model_dir: Path) -> None:
    async with running(model_dir, device="cuda", dtype="auto") as engine:
        assert engine.stats()["dtype"] == "bfloat16"
        asked = [whole(engine, request((n, n + 1), max_tokens=40)) for n in range(5, 13)]
        assert [answer.completion_tokens for answer in await asyncio.gather(*asked)] == [40] * 8
