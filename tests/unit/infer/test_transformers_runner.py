"""A model that llmos does not compute itself answers, slowly, what transformers says."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
import torch
import transformers

from llmos.errors import UsageError
from llmos.models import Tokenizer
from tests.unit.infer.small import request, running, whole

PROMPTS = [(5, 6, 7), (300,), tuple(range(40, 90)), (17,) * 20]


@pytest.fixture(scope="module")
def foreign_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gpt2")
    vocab_size = Tokenizer.load(model_dir).vocab_size
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.5}
    config = transformers.GPT2Config(vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, **shape)
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((model_dir / name).read_bytes())
    return directory


async def test_answers_are_those_of_transformers(foreign_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With fewer rows than requests, so that what is remembered of some is dropped."""
    theirs = transformers.GPT2LMHeadModel.from_pretrained(foreign_dir).eval()
    with caplog.at_level(logging.INFO):
        async with running(foreign_dir, runner="auto", max_batch=3, token_budget=24) as engine:
            asked = [request(prompt, max_tokens=20, ignore_eos=False) for prompt in PROMPTS]
            answers = await asyncio.gather(*[whole(engine, one) for one in asked])
            assert engine.stats()["runner"] == "transformers"
    assert sum("transformers, the slow way" in message for message in caplog.messages) == 1
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        inputs = torch.tensor([prompt])
        expected = theirs.generate(inputs, max_new_tokens=20, do_sample=False, attention_mask=torch.ones_like(inputs))
        assert list(answer.token_ids) == expected[0, len(prompt) :].tolist()
    assert len({answer.token_ids for answer in answers}) == len(PROMPTS)


async def test_what_only_our_own_runners_can_is_refused(foreign_dir: Path) -> None:
    with pytest.raises(UsageError, match="`tp` is not for a model"):
        async with running(foreign_dir, runner="auto", tp=2):
            pass
