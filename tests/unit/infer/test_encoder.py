"""The engine for encoders: batches, order, limits, and what becomes of those who leave."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from llmos.errors import CapacityError, ConflictError, ContextLengthError, DeadlineError, EngineError, UsageError
from llmos.infer.encoder import EncoderEngine
from llmos.infer.encoder_core import EncoderCore
from llmos.infer.encoder_messages import EmbedRequest, Encoded, EncodeRequest, Text, Vectors
from llmos.infer.encoder_options import EncoderOptions
from llmos.infer.link import ProcessLink
from tests.unit.models.encoders import write_encoder


class World:
    """A core whose vectors say which text they are of, and whose time passes only when it sleeps or computes."""

    def __init__(self, *, max_batch: int = 4, token_budget: int = 20, max_wait_s: float = 0.0) -> None:
        self.batches: list[list[Text]] = []
        self.now = self.slept = self.wrong = 0.0
        self.broken = 0  # the text whose vector is ``wrong``
        limits = {"max_batch": max_batch, "token_budget": token_budget, "max_wait_s": max_wait_s}
        self.core = EncoderCore(self._encode, width=1, clock=lambda: self.now, sleep=self._sleep, **cast(Any, limits))

    def add(self, id: str, *texts: Text, arrived: float = 0.0, **options: Any) -> None:
        self.core.add(EncodeRequest(id, texts, arrived, **options))

    def until_idle(self) -> list[Encoded]:
        found: list[Encoded] = []
        while self.core.busy:
            found += self.core.step()
        return found

    def _encode(self, texts: Sequence[Text]) -> Vectors:
        self.batches.append(list(texts))
        self.now += 1
        return np.array([[self.wrong if text[0] == self.broken else text[0]] for text in texts], np.float32)

    def _sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds


def text(name: int, length: int = 1) -> Text:
    return (name,) * length


class TestBatches:
    def test_are_filled_from_all_requests_and_sorted_by_length(self) -> None:
        world = World(max_batch=4, token_budget=20)
        world.add("a", text(1, 9), text(2, 3))
        world.add("b", text(3, 5))
        world.add("c", text(4, 4))
        found = {one.id: one.vectors_ND for one in world.until_idle()}
        assert world.batches == [[text(2, 3), text(3, 5), text(1, 9)], [text(4, 4)]]
        assert {id: vectors.tolist() for id, vectors in found.items() if vectors is not None} == {
            **{"a": [[1], [2]], "b": [[3]], "c": [[4]]}
        }

    def test_a_text_above_the_budget_goes_alone(self) -> None:
        world = World(token_budget=5)
        world.add("a", text(1, 9), text(2, 1))
        world.until_idle()
        assert world.batches == [[text(1, 9)], [text(2, 1)]]

    def test_many_texts_of_one_tenant_do_not_keep_another_waiting(self) -> None:
        world = World(max_batch=2)
        world.add("many", *(text(number) for number in range(8)), tenant="a")
        world.add("one", text(9), tenant="b")
        assert [one.id for one in world.core.step()] == ["one"]

    def test_a_higher_priority_goes_first(self) -> None:
        world = World(max_batch=1)
        world.add("low", text(1), priority=-1)
        world.add("high", text(2))
        assert [one.id for one in world.until_idle()] == ["high", "low"]

    def test_cancelled_texts_are_not_computed(self) -> None:
        world = World(max_batch=1)
        world.add("a", text(1), text(2), text(3))
        world.core.step()
        world.core.cancel("a")
        world.core.cancel("a")
        assert not world.core.busy and world.batches == [[text(1)]]
        assert world.core.stats()["waiting_tokens"] == 0 == world.core.stats()["waiting_texts"]

    def test_a_deadline_ends_what_is_not_complete(self) -> None:
        world = World(max_batch=1)
        world.add("a", text(1), text(2), text(3), deadline=1.5)
        (late,) = world.until_idle()
        assert isinstance(late.error, DeadlineError) and "2 of 3" in late.error.message

    def test_one_that_is_not_full_waits_for_the_oldest(self) -> None:
        world = World(max_wait_s=0.25)
        world.now = 0.125
        world.add("a", text(1))
        assert world.core.step() == [] and world.slept == 0.125
        world.add("b", text(2), arrived=0.25)
        assert [one.id for one in world.core.step()] == ["a", "b"] and world.slept == 0.125

    @pytest.mark.parametrize("texts", [[text(1)] * 4, [text(1, 20)]])
    def test_a_full_one_does_not_wait(self, texts: list[Text]) -> None:
        world = World(max_wait_s=9.0)
        world.add("a", *texts)
        assert len(world.core.step()) == 1 and world.slept == 0

    @pytest.mark.parametrize("wrong", [np.nan, np.inf])
    def test_a_vector_that_is_not_finite_is_an_error_of_its_request_alone(self, wrong: float) -> None:
        world = World()
        world.broken, world.wrong = 2, wrong
        world.add("a", text(1), text(2))
        world.add("b", text(3))
        bad, good = sorted(world.until_idle())[:2]
        assert isinstance(bad.error, EngineError) and "not finite" in bad.error.message and bad.vectors_ND is None
        assert good.error is None and good.vectors_ND is not None and not world.core.busy

    def test_it_says_when_it_hangs(self) -> None:
        world = World()
        assert world.core.overdue_s() is None
        world.add("a", text(1))
        world.until_idle()
        stats = world.core.stats()
        assert (stats["steps"], stats["texts"], world.core.overdue_s()) == (1, 1, None)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder")
    write_encoder(path)
    return path


@pytest.fixture(scope="module")
def engine(model_dir: Path) -> Iterator[EncoderEngine]:
    with closing(EncoderEngine(model_dir, threads=1, max_batch=2, max_queue=2, max_wait_s=0)) as engine:
        yield engine


def request(id: str, *texts: Text, **options: Any) -> EmbedRequest:
    return EmbedRequest(id, texts or ((2, 5, 3),), **options)


class TestEngine:
    async def test_answers_many_at_once_in_the_order_of_their_texts(self, engine: EncoderEngine) -> None:
        both = (2, 5, 3), (2, 4, 5, 6, 3)
        one, two = await asyncio.gather(engine.embed(request("a", *both)), engine.embed(request("b", *both[::-1])))
        np.testing.assert_allclose(one, two[::-1], atol=1e-6)
        assert one.shape == (2, 32) and one.dtype == np.float32
        stats = engine.stats()
        assert stats["healthy"] and (stats["running"], stats["waiting"]) == (0, 0)
        assert stats["threads"] == 1 and stats["context_length"] == 40

    @pytest.mark.parametrize(
        ("texts", "error", "message"),
        [
            (((2, 3), ()), UsageError, "input 1 is empty"),
            (((2,) * 41,), ContextLengthError, "the input has 41 tokens: expected at most 40"),
            (((2, 21),), UsageError, "token 21 of the input is not one: expected 0 to 20"),
            (((2, -1),), UsageError, "token -1"),
        ],
    )
    async def test_what_cannot_be_right_is_refused(
        self, engine: EncoderEngine, texts: tuple[Text, ...], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            await engine.embed(request("a", *texts))

    async def test_a_full_queue_refuses_with_a_time_and_recovers(self, engine: EncoderEngine) -> None:
        many = ((2, 5, 3),) * 500
        tasks = [asyncio.create_task(engine.embed(request(str(number), *many))) for number in range(4)]
        await asyncio.sleep(0)
        assert (engine.stats()["running"], engine.stats()["waiting"]) == (2, 2)
        with pytest.raises(ConflictError, match="`0` is already running"):
            await engine.embed(request("0"))
        await engine.abort("0")
        await asyncio.sleep(0)
        late = asyncio.create_task(engine.embed(request("late", *many)))
        await asyncio.sleep(0)
        with pytest.raises(CapacityError, match="4 requests are running or waiting") as refused:
            await engine.embed(request("full"))
        assert refused.value.retry_after_s >= 1
        for task in (late, *tasks):
            task.cancel()
        found = await asyncio.gather(late, *tasks, return_exceptions=True)
        assert isinstance(found[1], EngineError) and "aborted" in str(found[1])
        assert all(isinstance(one, asyncio.CancelledError) for one in (found[0], *found[2:]))
        assert (await engine.embed(request("a"))).shape == (1, 32)
        assert engine.stats()["waiting_texts"] == 0

    async def test_tokens_are_bounded_but_for_one_that_is_alone(self, model_dir: Path) -> None:
        engine = EncoderEngine(model_dir, threads=1, max_queue_tokens=3000)
        with closing(engine):
            alone = asyncio.create_task(engine.embed(request("a", *((2, 5, 3),) * 2000)))
            await asyncio.sleep(0)
            with pytest.raises(CapacityError, match="1 requests .* with 6000 tokens: expected at most 3000"):
                await engine.embed(request("b"))
            alone.cancel()
            await asyncio.gather(alone, return_exceptions=True)
            both = (engine.embed(request(id, *((2, 5, 3),) * 500)) for id in "cd")
            assert [len(found) for found in await asyncio.gather(*both)] == [500, 500]

    async def test_a_deadline_in_time_and_one_that_is_not(self, engine: EncoderEngine) -> None:
        assert len(await engine.embed(request("a", deadline_s=60.0))) == 1
        with pytest.raises(DeadlineError):
            await engine.embed(request("b", *((2, 5, 3),) * 2000, deadline_s=0.001))
        with pytest.raises(UsageError, match="`deadline_s` is 0"):
            request("c", deadline_s=0)

    async def test_closing_ends_those_who_wait(self, model_dir: Path) -> None:
        engine = EncoderEngine(model_dir, threads=1)
        waiting = asyncio.create_task(engine.embed(request("a", *((2, 5, 3),) * 2000)))
        await asyncio.sleep(0)
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineError, match="closed"):
            await waiting
        with pytest.raises(EngineError, match="closed"):
            await engine.embed(request("b"))
        assert not engine.stats()["healthy"]

    async def test_in_a_process_which_dies(self, model_dir: Path, engine: EncoderEngine) -> None:
        with closing(EncoderEngine(model_dir, process=True, threads=1)) as other:
            np.testing.assert_allclose(await other.embed(request("a")), await engine.embed(request("a")), atol=1e-6)
            waiting = asyncio.create_task(other.embed(request("b", *((2, 5, 3),) * 2000)))
            await asyncio.sleep(0)
            assert isinstance(other._link, ProcessLink)
            os.kill(other._link.pid, signal.SIGKILL)
            with pytest.raises(EngineError, match="signal 9"):
                await waiting
            assert not other.stats()["healthy"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "`dtype` is int8"),
        ({"threads": 0}, "`threads` is 0: expected at least 1"),
        ({"max_wait_s": -1.0}, "`max_wait_s` is -1.0"),
        ({"max_wait_s": float("inf")}, "`max_wait_s` is inf"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EncoderOptions("nowhere", **options)


def test_a_model_whose_vectors_are_not_finite_is_not_served(model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: weight * float("nan") for name, weight in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(EngineError, match="its vector is not finite"):
        EncoderEngine(tmp_path, threads=1)


def test_a_text_can_have_no_more_tokens_than_the_model_has_positions(model_dir: Path) -> None:
    with pytest.raises(UsageError, match="`context_length` is 41: expected at most 40"):
        EncoderEngine(model_dir, threads=1, context_length=41)
