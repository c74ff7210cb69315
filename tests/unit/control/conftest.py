from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.control.world import World, write_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def world(tmp_path: Path, tokenizer: Path) -> World:
    return World(tmp_path / "state", tokenizer)
