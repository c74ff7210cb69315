"""Ranks compute together what one process does; whoever is lost is named, and nobody is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmos.errors import EngineError, ModelError
from llmos.infer import rank, ranks
from llmos.infer.launch import Meeting
from llmos.infer.patience import Patience
from llmos.infer.ranks import RanksRunner
from llmos.infer.wire import Channel, packed, unpacked
from llmos.models import Transformer, weights
from tests.unit.infer.quantized import INT4, write_quantized
from tests.unit.infer.steps import BLOCKS, Script, expected, worst
from tests.unit.models.small import make

FP32_TOLERANCE = 1e-4
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["llmos.infer.rank"])  # torch is imported once for all ranks


@dataclass
class Child:
    """A rank's process, as ``Process`` wants it."""

    process: ForkServerProcess

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutError
        return self.process.exitcode


def _serve(meeting: Meeting, number: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    rank.serve(meeting, number)
    os._exit(0)


class Launcher:
    """Starts ranks, which run ``serve``, and remembers them."""

    def __init__(self, serve: Callable[[Meeting, int], None] = _serve) -> None:
        self._serve = serve
        self.children: list[Child] = []

    def __call__(self, meeting: Meeting) -> Sequence[Child]:
        self.children = [Child(_processes.Process(target=self._serve, args=(meeting, n))) for n in range(meeting.ranks)]
        for child in self.children:
            child.process.start()
        return self.children


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    assert all(child.poll() is not None for child in launcher.children), "a rank was left behind"


def _saved(directory: Path, **changes: Any) -> Transformer:
    model = make(**changes)
    weights.save_model(model, directory)
    return model


def _worst(runner: RanksRunner, model: Transformer) -> float:
    """The largest difference from ``model``, of as many scripts side by side as steps may be in flight."""
    scripts = [Script(seed=n, first_block=n * BLOCKS) for n in range(runner.depth)]
    logits: list[list[torch.Tensor]] = [[] for _ in scripts]
    for together in zip(*[script.steps() for script in scripts], strict=True):
        for step, _ in together:
            runner.start(step)
        for found in logits:
            found.append(runner.finish())
    return max(worst(found, expected(model, script)) for found, script in zip(logits, scripts, strict=True))


@pytest.mark.parametrize(
    ("tp", "pp", "changes"),
    [
        (2, 1, {"num_kv_heads": 1, "intermediate_size": 48}),  # a key head for both; 32 and 16 features
        (1, 2, {"tie_embeddings": False}),
        pytest.param(2, 2, {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["torch", "native"])
def test_ranks_compute_what_one_process_does(
    tmp_path: Path, launcher: Launcher, kind: str, tp: int, pp: int, changes: dict[str, Any]
) -> None:
    """Steps without wanted logits among them: the middle of a prompt that is longer than a step."""
    model = _saved(tmp_path, **changes)
    runner = RanksRunner(tmp_path, pp * BLOCKS, tp=tp, pp=pp, runner=kind, launch=launcher)
    try:
        assert runner.vocab_size == 97 and runner.depth == pp and runner.blocks == pp * BLOCKS
        assert _worst(runner, model) < FP32_TOLERANCE
        assert len(runner.stats()["ranks"]) == tp * pp  # type: ignore[arg-type]
    finally:
        runner.close()


def test_quantized_weights_are_shared_too(tmp_path: Path, launcher: Launcher) -> None:
    """The output matrix too, by the vocabulary."""
    model = write_quantized(make(intermediate_size=96, tie_embeddings=False), tmp_path, INT4)
    runner = RanksRunner(tmp_path, BLOCKS, tp=2, runner="torch", launch=launcher)
    try:
        assert _worst(runner, model) < FP32_TOLERANCE
    finally:
        runner.close()


@pytest.mark.parametrize(
    ("how", "says"), [(signal.SIGKILL, "is gone"), (signal.SIGSTOP, "hangs")], ids=["dead", "hung"]
)
def test_a_lost_rank_is_named(
    tmp_path: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, how: int, says: str
) -> None:
    _saved(tmp_path)
    runner = RanksRunner(tmp_path, BLOCKS, tp=2, runner="torch", launch=launcher)
    monkeypatch.setattr(ranks, "SILENCE_S", 3.0)
    step, _ = next(Script().steps())
    runner.start(step)
    runner.finish()
    os.kill(launcher.children[1].process.pid or 0, how)
    runner.start(step)
    began_s = time.monotonic()
    with pytest.raises(EngineError, match=f"rank 1 {says}"):
        runner.finish()
    assert time.monotonic() - began_s < 8
    with pytest.raises(EngineError, match=f"rank 1 {says}"):
        runner.start(step)
    runner.close()


@pytest.mark.parametrize(
    ("how", "says"), [(signal.SIGKILL, "is gone"), (signal.SIGSTOP, "hangs")], ids=["dead", "hung"]
)
def test_a_rank_that_is_lost_while_nothing_runs_is_named(
    tmp_path: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, how: int, says: str
) -> None:
    _saved(tmp_path)
    runner = RanksRunner(tmp_path, BLOCKS, tp=2, runner="torch", launch=launcher)
    monkeypatch.setattr(ranks, "SILENCE_S", 2.5)
    time.sleep(3)  # what they say meanwhile is not lost
    runner.watch()
    os.kill(launcher.children[1].process.pid or 0, how)
    with pytest.raises(EngineError, match=f"rank 1 {says}"):
        _watch(runner, 8)
    runner.close()


def _watch(runner: RanksRunner, duration_s: float) -> None:
    until_s = time.monotonic() + duration_s
    while time.monotonic() < until_s:
        time.sleep(0.1)
        runner.watch()


def _serve_and_hang(meeting: Meeting, number: int) -> None:
    def wait(_: torch.Tensor) -> None:
        time.sleep(60)

    rank.agree = lambda *_: wait
    _serve(meeting, number)


def test_ranks_that_wait_for_one_another_for_ever_are_found(tmp_path: Path) -> None:
    _saved(tmp_path)
    launcher = Launcher(_serve_and_hang)
    runner = RanksRunner(tmp_path, BLOCKS, tp=2, runner="torch", launch=launcher)
    runner._patience = Patience(1.5, 1.5)
    step, _ = next(Script().steps())
    runner.start(step)
    with pytest.raises(EngineError, match="waited for one another"):
        runner.finish()
    runner.close()
    assert all(child.poll() is not None for child in launcher.children)


def test_what_a_rank_cannot_load_is_said_here(tmp_path: Path, launcher: Launcher) -> None:
    _saved(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="rank [01]: .* is truncated or corrupt"):
        RanksRunner(tmp_path, BLOCKS, tp=2, runner="torch", launch=launcher)


def test_a_stranger_is_no_rank() -> None:
    meeting = Meeting("127.0.0.1", 0, bytes(32), 2)
    for secret, number, welcome in ((bytes(32), 1, True), (b"x" * 32, 1, False), (bytes(32), 2, False)):
        with socket.create_server(("127.0.0.1", 0)) as server:
            there = socket.create_connection(server.getsockname())
            here, _ = server.accept()
        there.sendall(secret + number.to_bytes(4, "little"))
        assert (Channel.accept(here, meeting, 1.0) is not None) == welcome
        here.close()
        there.close()


def test_a_step_is_one_array() -> None:
    for step, _ in Script().steps():
        again = unpacked(bytearray(packed(step)))
        for name in ("tokens_N", "positions_N", "starts_S", "blocks_SM", "logits_at_L"):
            np.testing.assert_array_equal(getattr(again, name), getattr(step, name))
