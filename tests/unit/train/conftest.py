"""A job small enough to train in a second, and ways to run it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos.layout import Layout
from llmos.parallel.world import World
from llmos.spec import TrainJob, parse
from llmos.train.local import train_on_ranks
from llmos.train.loop import train
from llmos.train.run import Result, Run

SENTENCE = "the loop reads a window of text and moves every weight a little so that the next token surprises it less"
WORDS = SENTENCE.split(" ")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _write(directory: Path, words_a_file: int) -> Path:
    """Ten files of words in an order that is the same each time."""
    for number in range(10):
        words = [WORDS[(number * 7 + i * i + i // 5) % len(WORDS)] for i in range(words_a_file)]
        (directory / f"{number}.txt").write_text(" ".join(words) + "\n")
    return directory


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("text"), 600)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Runs attempts of one job under one state directory."""

    layout: Layout
    text: Path

    def job(self, **changes: Any) -> TrainJob:
        fields: dict[str, Any] = {
            "kind": "TrainJob",
            "name": "tiny",
            "model": {"preset": "nano"},
            "data": self.data,
            "steps": 12,
            "batch_size": 4,
            "sequence_length": 32,
            "precision": "fp32",
            "optimizer": {"warmup_steps": 3, "learning_rate": 3e-3},
            "checkpoint": {"every_steps": 6},
            "output": {"model": "tiny"},
        }
        job = parse(fields | changes)
        assert isinstance(job, TrainJob)
        return job

    @property
    def data(self) -> dict[str, Any]:
        return {"path": str(self.text), "vocab_size": 280, "validation_fraction": 0.1}

    def run(self, attempt: int = 1, **changes: Any) -> Run:
        dirs = self.layout.job("tiny")
        return Run(self.job(**changes), dirs, dirs.attempt(attempt), self.layout.data)

    def train(self, attempt: int = 1, ranks: int = 1, **changes: Any) -> Result:
        run = self.run(attempt, **changes)
        if ranks > 1:
            return train_on_ranks(run, ranks)
        run.attempt.root.mkdir(parents=True, exist_ok=True)
        return train(run, World())

    def rows(self, attempt: int = 1) -> list[dict[str, float]]:
        lines = self.layout.job("tiny").attempt(attempt).metrics.read_text().splitlines()
        return [json.loads(line) for line in lines]

    def samples(self, attempt: int, rank: int) -> list[list[str]]:
        """Which samples ``rank`` read, step by step."""
        lines = self.layout.job("tiny").attempt(attempt).samples(rank).read_text().splitlines()
        return [json.loads(line)["ids"] for line in lines]

    def losses(self, attempt: int = 1) -> list[float]:
        return [row["loss"] for row in self.rows(attempt)]


@pytest.fixture(scope="session")
def short_trainer_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Trainer]:
    """A trainer on little text, with its state in a directory."""
    text = _write(tmp_path_factory.mktemp("short"), 120)
    return lambda directory: Trainer(Layout(directory), text)


@pytest.fixture
def trainer(tmp_path: Path, text: Path) -> Trainer:
    return Trainer(Layout(tmp_path / "state"), text)


@pytest.fixture
def another(tmp_path: Path, text: Path) -> Callable[[str], Trainer]:
    """A trainer with a state directory of its own."""
    return lambda name: Trainer(Layout(tmp_path / name), text)
