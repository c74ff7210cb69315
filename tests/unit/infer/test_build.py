"""Which runner an engine begins with, where the native step is not compiled yet, or cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.errors import EngineError
from llmos.infer import makers, ranks
from llmos.infer.local import LocalEngine
from llmos.infer.native import bindings
from tests.unit.infer.small import request, running, whole


@pytest.fixture
def useless_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A compiler that makes what no process can load; the file in which it writes a line for each of its calls."""
    path, calls = tmp_path / "compiler", tmp_path / "calls"
    script = f'[ "$1" = --version ] && exit\necho called >> {calls}\nfor last; do :; done\necho built > "$last"\n'
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bindings.native_step.cache_clear()
    yield calls
    bindings.native_step.cache_clear()


async def test_a_native_step_that_cannot_be_loaded_is_done_without(
    model_dir: Path, useless_compiler: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EngineError, match="cannot be loaded"):
        bindings.native_step()
    async with running(model_dir, runner="auto") as engine:
        assert (await whole(engine, request())).completion_tokens == 12
        assert engine.stats()["runner"] == "torch" and engine.stats()["healthy"]
    assert "the native step cannot be used: the native step cannot be loaded" in caplog.text
    with pytest.raises(EngineError, match="cannot be loaded"):
        LocalEngine(model_dir, runner="native")


@pytest.mark.parametrize("loads", [True, False])
@pytest.mark.parametrize("runner", ["auto", "native", "torch"])
def test_ranks_wait_until_the_native_step_is_compiled(
    model_dir: Path, useless_compiler: Path, monkeypatch: pytest.MonkeyPatch, runner: str, loads: bool
) -> None:
    given: list[str] = []

    def ranks_runner(_: object, **options: Any) -> None:
        given.append(options["runner"])
        raise EngineError("enough is known")

    def compiled() -> None:
        useless_compiler.write_text("called\n")

    monkeypatch.setattr(ranks, "RanksRunner", ranks_runner)
    if loads:
        monkeypatch.setattr(makers, "native_step", compiled)
    with pytest.raises(EngineError, match="enough is known"):
        LocalEngine(model_dir, tp=2, runner=runner)
    assert given == [{"auto": "native" if loads else "torch"}.get(runner, runner)]
    assert useless_compiler.exists() == (runner == "auto")


async def test_an_engine_with_a_draft_model_waits_too(
    model_dir: Path, useless_compiler: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running(model_dir, runner="auto", speculative=2, draft=model_dir) as engine:
        assert engine.stats()["runner"] == "torch"
    assert useless_compiler.read_text() == "called\n"
    assert "compiled before the start" in caplog.text and "cannot be used" in caplog.text


def test_without_a_compiler_no_weights_are_read_a_second_time(
    model_dir: Path, useless_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(makers.Makers, "_shard", read)
    with pytest.raises(EngineError, match="cannot be loaded"):
        LocalEngine(model_dir, runner="native")


@pytest.mark.parametrize("runner", ["torch", "native"])
async def test_a_draft_model_shares_the_memory_of_the_cache(model_dir: Path, runner: str) -> None:
    given: dict[str, Any] = {"memory_bytes": 2**20, "runner": runner, "dtype": "float32"}
    async with (
        running(model_dir, **given) as alone,
        running(model_dir, **given, speculative=2, draft=model_dir) as drafting,
    ):
        blocks = [engine.stats()["blocks"] for engine in (alone, drafting)]
    assert blocks[1] == blocks[0] // 2 > 0
