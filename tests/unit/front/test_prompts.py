"""Prompts in the front door: the tokens that the engine gets, and the names it has for their blocks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import UsageError
from llmos.front import prompts as module
from llmos.front.prompts import LONG, Prompts, token_lists
from llmos.infer.blocks import Blocks
from llmos.infer.prefix import BLOCK_TOKENS
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.serving import EngineBackend
from tests.unit.models.test_tokenizer import TOKENIZER

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
TEXT = "def long_enough(): return [number for number in range(100)]\n" * 3


@pytest.fixture
def model(tmp_path: Path) -> str:
    TOKENIZER.save(tmp_path)
    return str(tmp_path)


def chat(*contents: str) -> ChatRequest:
    messages = [{"role": "user", "content": content} for content in contents]
    return ChatRequest.model_validate({"model": "m", "messages": messages})


def completion(prompt: object) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", "prompt": prompt})


@pytest.mark.parametrize("request_", [chat(TEXT, "more"), completion(TEXT), completion([TEXT, "b"]), completion("")])
def test_tokens_are_those_that_the_engine_is_asked_with(request_: ChatRequest | CompletionRequest) -> None:
    backend = EngineBackend(None, TOKENIZER, "m")  # type: ignore[arg-type]  # asked for nothing but tokens
    assert [tuple(tokens) for tokens in token_lists(TOKENIZER, request_)] == backend.prompts(request_)


@given(st.lists(st.text(max_size=200) | st.just(TEXT), min_size=1, max_size=3))
def test_the_engine_finds_the_blocks_under_the_same_names(contents: list[str]) -> None:
    request, blocks = chat(*contents), Blocks(200)
    found = module._read(TOKENIZER, request, "key-1")
    tokens = TOKENIZER.encode_chat([message.plain for message in request.messages])
    table = blocks.open(tokens, b"key-1")
    assert table.grow(len(tokens))
    table.commit(tokens, len(tokens))
    assert found.tokens == len(tokens) and len(found.digests) == len(tokens) // BLOCK_TOKENS
    assert [blocks.find(digest) for digest in found.digests] == list(table.blocks[: len(found.digests)])


async def test_another_key_has_other_names(model: str) -> None:
    prompts = Prompts()
    one, two = [await prompts.read(model, completion(TEXT), key) for key in ("one", "two")]
    assert one.tokens == two.tokens and one.digests and not set(one.digests) & set(two.digests)


async def test_all_prompts_are_counted_and_the_first_is_named(model: str) -> None:
    prompts = Prompts()
    alone = await prompts.read(model, completion(TEXT), "")
    both = await prompts.read(model, completion([TEXT, TEXT]), "")
    assert both.tokens == 2 * alone.tokens and both.digests == alone.digests
    given = await prompts.read(model, completion([[5] * 40, [6] * 3]), "")
    assert given.tokens == 43 and len(given.digests) == 2


async def test_a_model_is_loaded_once(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    real = module._load
    monkeypatch.setattr(module, "_load", lambda directory: loads.append(directory) or real(directory))
    prompts = Prompts()
    found = await asyncio.gather(*(prompts.read(model, chat(f"{number}"), "") for number in range(5)))
    assert loads == [model] and len({prompt.tokens for prompt in found}) == 1


async def test_whoever_leaves_while_it_is_loaded_takes_it_from_nobody(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go, real = threading.Event(), module._load
    monkeypatch.setattr(module, "_load", lambda directory: may_go.wait(10) and real(directory))
    prompts = Prompts()
    first, second = (asyncio.create_task(prompts.read(model, chat("a"), "")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    may_go.set()
    assert (await second).tokens > 0 and first.cancelled()


async def test_few_models_are_kept(model: str, tmp_path: Path) -> None:
    prompts = Prompts(max_models=2)
    names = [str(tmp_path / "." / name / "..") for name in ("x", "y", "z")]
    for name in names:
        await prompts.load(name)
    assert list(prompts._tokenizers) == names[1:]


async def test_a_long_prompt_is_read_in_a_thread(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[bool] = []
    real = module._read
    here = threading.get_ident()

    def noted(*given: object) -> module.Prompt:
        where.append(threading.get_ident() == here)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_read", noted)
    prompts = Prompts()
    await prompts.read(model, chat("short"), "")
    await prompts.read(model, chat("x" * LONG), "")
    await prompts.read(model, completion([1] * LONG), "")
    assert where == [True, False, False]


async def test_a_tokenizer_that_cannot_be_used_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = Prompts()
    for _ in range(2):
        found = await prompts.read(str(tmp_path), chat("x" * 300), "")
        assert found.tokens == 100 and not found.digests
    assert [record.message for record in caplog.records if "routed without" in record.message] != []
    assert len(caplog.records) == 1


async def test_what_the_template_does_not_take_is_said(model: str) -> None:
    request = ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "a"}], "tools": [TOOL]}
    )
    with pytest.raises(UsageError, match="knows no tools"):
        await Prompts().read(model, request, "")


def test_neither_torch_nor_ray_is_imported() -> None:
    said = "import sys, llmos.front.prompts, llmos.front.routing; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


async def test_templates_go_over_many_turns_and_tools_in_a_thread(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here, where = threading.get_ident(), list[bool]()

    def noted(*_: object) -> module.Prompt:
        where.append(threading.get_ident() == here)
        return module.Prompt(1)

    monkeypatch.setattr(module, "_read", noted)
    earlier = {"id": "1", "function": {"name": "look", "arguments": "x" * LONG}}
    called = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [earlier]}]
    asked = [chat("short"), chat(*[""] * 100)]
    asked += [ChatRequest.model_validate({"model": "m", "messages": called})]
    asked += [ChatRequest.model_validate({"model": "m", "messages": called[:1], "tools": [TOOL]})]
    for request in asked:
        await Prompts().read(model, request, "")
    assert where == [True, False, False, False]


async def test_a_model_that_may_not_be_read_is_no_error(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: str) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(module.Tokenizer, "load", forbidden)
    assert (await Prompts().read(model, chat("x" * 300), "")).tokens == 100
