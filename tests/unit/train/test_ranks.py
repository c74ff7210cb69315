"""Several ranks, without Ray: they compute what one computes, and end together."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos.errors import LlmosError, NotFoundError
from llmos.spec import to_yaml
from llmos.train.speed import step_seconds
from llmos.train.training import Training


@pytest.fixture(autouse=True)
def _no_process_left() -> Any:
    yield
    assert not multiprocessing.active_children()
    assert not torch.distributed.is_initialized()


def test_two_ranks_equal_one_and_may_become_one(another: Callable[[str], Any]) -> None:
    one, two = another("one"), another("two")
    changes = {"validation": {"every_steps": 6}, "data": one.data | {"log_samples": True}}
    one.train(**changes)
    assert two.train(ranks=2, **changes).phase == "succeeded"
    assert two.losses() == pytest.approx(one.losses(), abs=1e-5)
    for ours, theirs in zip(two.rows(), one.rows(), strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert two.rows()[-1]["bits_per_byte"] == pytest.approx(one.rows()[-1]["bits_per_byte"], abs=1e-5)
    # the checkpoint of step 6, made by two ranks, continues on one
    dirs = two.layout.job("tiny")
    shutil.rmtree(dirs.checkpoints / "step-00000012")
    shutil.rmtree(dirs.export)
    two.train(attempt=2, **changes)
    assert two.losses(2) == pytest.approx(one.losses()[6:], abs=1e-5)
    # step by step, all ranks together have read what one reads: nothing twice, nothing left out
    assert list(zip(two.samples(1, 0), two.samples(1, 1), strict=True))[:6] == [
        (ids[:2], ids[2:]) for ids in one.samples(1, 0)[:6]
    ]
    assert two.samples(2, 0) == one.samples(1, 0)[6:]


def test_an_uneven_batch_is_still_the_same_batch(another: Callable[[str], Any]) -> None:
    one, two = another("one"), another("two")
    one.train(batch_size=3, steps=4)
    two.train(ranks=2, batch_size=3, steps=4)
    assert two.losses() == pytest.approx(one.losses(), abs=1e-5)


def test_ranks_that_share_the_work_of_muon_take_the_same_steps(another: Callable[[str], Any]) -> None:
    one, two = another("one"), another("two")
    muon = {"name": "muon", "learning_rate": 1e-2, "warmup_steps": 0}
    one.train(steps=6, optimizer=muon)
    two.train(ranks=2, steps=6, optimizer=muon)
    assert two.losses() == pytest.approx(one.losses(), abs=3e-3)  # bf16 products magnify the order of a sum


def test_a_step_is_timed_on_all_ranks_at_once(trainer: Any) -> None:
    job = trainer.job(mesh={"dp": 2}, optimizer={"name": "muon"})
    assert 0 < step_seconds(job, measured_s=0.1) < 10


def test_bad_data_ends_every_rank_with_its_message(trainer: Any) -> None:
    began = time.monotonic()
    with pytest.raises(NotFoundError, match="nowhere"):
        trainer.train(ranks=2, data={"path": "/nowhere/at/all.txt", "vocab_size": 280})
    assert time.monotonic() - began < 20


def test_a_rank_that_dies_ends_the_others(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Training.advance

    def kill_the_other(self: Training, stop: bool = False) -> Any:
        if self.step == 3:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
        return advance(self, stop)

    monkeypatch.setattr(Training, "advance", kill_the_other)
    with pytest.raises(LlmosError, match=r"another rank is gone: rank 1 was killed \(signal 9\)"):
        trainer.train(ranks=2, checkpoint={"every_steps": 1})  # in the middle of a save, too


def _command(trainer: Any, spec: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "llmos.train", str(spec), "--state-dir", str(trainer.layout.root), *more]


def test_the_command_line_stops_on_ctrl_c_and_goes_on(trainer: Any, tmp_path: Path) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(to_yaml(trainer.job(steps=100_000)))
    process = subprocess.Popen(_command(trainer, spec, "--nproc", "2"), stderr=subprocess.PIPE, text=True)
    metrics = trainer.layout.job("tiny").attempt(1).metrics
    deadline = time.monotonic() + 40
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    last = int(trainer.rows(1)[-1]["step"])
    assert process.returncode == 130, told
    assert f"stopped after step {last}; the same command continues from there" in told
    again = subprocess.Popen(_command(trainer, spec), stderr=subprocess.PIPE, text=True)
    metrics = trainer.layout.job("tiny").attempt(2).metrics
    while not metrics.exists() and time.monotonic() < deadline + 20:
        time.sleep(0.05)
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=30)
    assert trainer.rows(2)[0]["step"] == last + 1


@pytest.mark.timeout(240)  # starts torch several times
@pytest.mark.parametrize(("ranks", "kills"), [(1, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_as_if_it_never_was(
    another: Callable[[str], Any], tmp_path: Path, ranks: int, kills: int
) -> None:
    """SIGKILL to all ranks in the middle of steps and saves, resume, and the rows are those of an unbroken run."""
    changes = {"steps": 30, "checkpoint": {"every_steps": 2}, "validation": {"every_steps": 7}}
    straight, broken, rng = another("straight"), another("broken"), random.Random(ranks)
    straight.train(ranks=ranks, **changes)
    spec = tmp_path / "job.yaml"
    spec.write_text(to_yaml(broken.job(**changes)))
    rows: dict[float, dict[str, float]] = {}
    ends = [rng.randint(3 + 13 * kill, 12 + 13 * kill) for kill in range(kills)]
    for attempt, until in enumerate([*ends, 31], start=1):
        command = _command(broken, spec, "--nproc", str(ranks))
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        while process.poll() is None and (not rows or max(rows) < until):
            time.sleep(rng.uniform(0, 0.02))
            with suppress(FileNotFoundError, ValueError):  # not there yet; half a line
                rows |= {row["step"]: row for row in broken.rows(attempt)}
        if until < 31:
            os.killpg(process.pid, signal.SIGKILL)
        _, told = process.communicate(timeout=40)
        assert (process.returncode == 0) == (until == 31), told
        fresh = broken.rows(attempt)
        assert [row["step"] for row in fresh] == list(range(int(fresh[0]["step"]), int(fresh[-1]["step"]) + 1))
        rows |= {row["step"]: row for row in fresh}
    same = ("step", "loss", "grad_norm", "validation_loss", "tokens")
    expected = [{name: row.get(name) for name in same} for row in straight.rows()]
    assert [{name: rows[step].get(name) for name in same} for step in sorted(rows)] == expected
    exports = [t.layout.job("tiny").export / "model.safetensors" for t in (straight, broken)]
    assert exports[0].read_bytes() == exports[1].read_bytes()


@pytest.mark.parametrize(
    ("text", "more", "code", "message"),
    [
        ("kind: TrainJob\nstep: 3\n", [], 2, "line 2: `step` is not a field"),
        (None, ["--steps", "0"], 2, "the command line has 1 problem"),
        (None, ["--data", "/nowhere/at/all.txt"], 1, "/nowhere/at/all.txt"),
    ],
)
def test_what_bad_input_gets(
    trainer: Any, tmp_path: Path, text: str | None, more: list[str], code: int, message: str
) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(text or to_yaml(trainer.job()))
    done = subprocess.run(_command(trainer, spec, *more), capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""
