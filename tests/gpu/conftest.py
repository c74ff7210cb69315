"""Tests that run on one CUDA card, and say aloud that they do not run where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmos.layout import Layout
from tests.unit.train.conftest import Trainer, _write


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA card: torch.cuda.is_available() is False"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("text"), 600)


@pytest.fixture
def another(tmp_path: Path, text: Path) -> Callable[[str], Trainer]:
    """A trainer with a state directory of its own."""
    return lambda name: Trainer(Layout(tmp_path / name), text)
