"""What a replica says that requests have used: to the front door in the stream, and to the control module itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from llmos.embedding import EncoderBackend
from llmos.front.usage import comment, of_answer, taken_out
from llmos.front.witness import PATIENCE_S, Witness
from llmos.infer.encoder import EncoderEngine
from llmos.openai.caller import Caller
from llmos.openai.embeddings import EmbeddingRequest
from llmos.openai.schema import CompletionRequest
from llmos.openai.sse import DONE
from llmos.serving import EngineBackend
from llmos.usage import CLIENT_GONE, REPLICA, Tokens
from tests.unit.models.encoders import write_encoder
from tests.unit.openai.conftest import Served

PROMPTS = [[5, 6, 7, 8], [9, 10]]


class World:
    def __init__(self, served: Served) -> None:
        self.now = 0.0
        self.witness = Witness("s", "m@1", lambda: self.now)
        self.backend = EngineBackend(served.engine, served.engine.tokenizer, "small", witness=self.witness)

    async def answer(self, **extra: object) -> bytes:
        body = {"model": "small", "prompt": PROMPTS, "max_tokens": 3, "n": 2, "ignore_eos": True, **extra}
        request = CompletionRequest.model_validate(body)
        return b"".join([piece async for piece in self.backend.answer(request, Caller("k", "t", "req_1"))])

    def told(self) -> tuple[Tokens, int]:
        (record,) = self.witness.due()
        assert (record.id, record.key, record.tenant, record.service, record.model) == ("req_1", "k", "t", "s", "m@1")
        assert record.witness == REPLICA
        return Tokens(record.prompt, record.cached, record.completion), record.status


@pytest.fixture
def world(served: Served) -> World:
    return World(served)


async def test_the_front_door_and_the_witness_are_told_the_same(world: World) -> None:
    streamed = await world.answer(stream=True)
    shown, tokens = taken_out(streamed)
    assert tokens is not None and tokens._replace(cached=0) == Tokens(6, 0, 12)
    assert streamed.endswith(comment(tokens) + DONE) and shown.endswith(DONE)
    assert world.witness.due() == []  # the front door has told of it, as a rule
    world.now = PATIENCE_S
    assert world.told() == (tokens, 200)
    world.witness.told(world.witness.due())
    answer = of_answer(await world.answer())
    world.now *= 2
    assert world.told() == (answer, 200)


async def test_a_client_that_leaves_is_counted_with_what_was_made(world: World) -> None:
    body = {"model": "small", "prompt": PROMPTS[0], "max_tokens": 100, "ignore_eos": True, "stream": True}
    pieces = world.backend.answer(CompletionRequest.model_validate(body), Caller("k", "t", "req_1"))
    await anext(pieces)
    await pieces.aclose()
    tokens, status = world.told()
    assert status == CLIENT_GONE and tokens.prompt == 4 and 1 <= tokens.completion < 100


def test_without_a_front_door_streams_are_plain(served: Served, http: httpx.Client) -> None:
    body = {"model": "small", "prompt": "a", "max_tokens": 2, "stream": True}
    answer = http.post(f"{served.url}/v1/completions", json=body)
    assert answer.content.endswith(DONE) and b"llmos-usage" not in answer.content


def test_vectors_are_counted(tmp_path: Path) -> None:
    now = [0.0]
    witness = Witness("s", "e@1", lambda: now[0])
    write_encoder(tmp_path)
    engine = EncoderEngine(tmp_path, threads=1)
    request = EmbeddingRequest(model="e", input=[[5, 6, 7], [8, 9]])
    try:
        reply = asyncio.run(EncoderBackend(engine, "e", None, witness).embed(request, Caller("k")))
    finally:
        engine.close()
    now[0] = PATIENCE_S
    (record,) = witness.due()
    assert of_answer(reply) == Tokens(record.prompt, 0, 0) and record.prompt == 5
