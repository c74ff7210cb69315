"""The core in a process of its own: whoever of the two goes, however it goes, nothing is left and nobody waits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmos.errors import EngineError, ModelError, UsageError
from llmos.infer import link
from llmos.infer.core import EngineCore
from llmos.infer.link import ProcessLink
from llmos.infer.local import LocalEngine
from tests.unit.infer.small import CONTEXT, request, running, whole

LONG = CONTEXT - 3


def _children() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True)]


def _until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _pid(engine: LocalEngine) -> int:
    assert isinstance(engine._link, ProcessLink)
    return engine._link.pid


async def test_a_process_answers_as_a_thread_does_and_when_it_dies_everybody_is_told(
    model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = _children()
    asked = [request((5, 6, n), max_tokens=40) for n in range(6)]
    async with running(model_dir) as engine:
        expected = await asyncio.gather(*[whole(engine, one) for one in asked])
    async with running(model_dir, process=True, max_batch=3) as engine:
        assert await asyncio.gather(*[whole(engine, one) for one in asked]) == expected
        leaving = engine.generate(request((9,), max_tokens=LONG))
        await anext(leaving)
        await leaving.aclose()
        stats = engine.stats()
        assert (stats["running"], stats["waiting"], stats["dtype"]) == (0, 0, "float32")
        tasks = [asyncio.create_task(whole(engine, request(max_tokens=LONG))) for _ in range(5)]
        await anext(engine.generate(request()))
        os.kill(_pid(engine), signal.SIGSEGV)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, EngineError) and "signal 11" in result.message for result in results)
        assert not engine.stats()["healthy"]
        with pytest.raises(EngineError, match="signal 11"):
            await whole(engine, request())
    assert _children() == before
    assert "Segmentation fault" in (said := capfd.readouterr().err) and "infer/child.py" in said


async def test_whatever_goes_wrong_on_the_way_everybody_is_told(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, where the news are handed out; in a process of its own as in a thread."""

    def broken(_: LocalEngine, report: object) -> None:
        raise KeyError("a bug")

    before = _children()
    monkeypatch.setattr(LocalEngine, "on_report", broken)
    for process in (False, True):
        async with running(model_dir, process=process) as engine:
            with pytest.raises(EngineError, match="KeyError: 'a bug'"):
                await asyncio.wait_for(whole(engine, request()), 20)
            assert not engine.stats()["healthy"]
    assert _children() == before


async def test_a_core_that_cannot_be_closed_still_ends_every_request(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: EngineCore) -> None:
        raise OSError("a socket is gone")

    monkeypatch.setattr(EngineCore, "close", broken)
    async with running(model_dir) as engine:
        task = asyncio.create_task(whole(engine, request(max_tokens=LONG)))
        await anext(engine.generate(request()))
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineError, match="is closed"):
            await asyncio.wait_for(task, 20)


def test_a_process_that_hangs_is_found_and_ended(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert link.BEAT_S < link.SILENCE_S <= 15
    monkeypatch.setattr(link, "SILENCE_S", 0.5)
    start = subprocess.Popen

    def stopped(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        child = start(*arguments, **options)
        child.send_signal(signal.SIGSTOP)
        return child

    monkeypatch.setattr(subprocess, "Popen", stopped)
    before = _children()
    with pytest.raises(EngineError, match="hangs: it said nothing"):
        LocalEngine(model_dir, process=True)
    assert _children() == before


@pytest.mark.slow
async def test_closing_a_process_leaves_nothing_and_its_errors_are_those_of_a_thread(
    model_dir: Path, tmp_path: Path
) -> None:
    before = _children()
    async with running(model_dir, process=True) as engine:
        task = asyncio.create_task(whole(engine, request(max_tokens=LONG)))
        await anext(engine.generate(request()))
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineError, match="is closed"):
            await task
    assert _children() == before
    with pytest.raises(UsageError, match="context_length"):
        LocalEngine(model_dir, process=True, context_length=9999)
    with pytest.raises(ModelError, match="there is no"):
        LocalEngine(tmp_path, process=True)
    assert _children() == before


_PARENT = """
import sys, time
from llmos.infer.local import LocalEngine
engine = LocalEngine(sys.argv[1], process=True, runner="torch", threads=1)
assert "torch" not in sys.modules, "the side that does not compute has loaded torch"
print(engine._link.pid, flush=True)
time.sleep(60)
"""


def test_it_ends_with_the_process_that_started_it(model_dir: Path) -> None:
    """Which did not need torch."""
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(model_dir)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
