"""A small whole model on disk, in bf16, with a lineage and a card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmos.models import ModelConfig, Transformer, train_bpe, weights

CODE = "class Walk:\n    def step(self, n):\n        for i in range(n):\n            yield i * 2 + 10\n\n" * 3
CARD = "---\nlicense: apache-2.0\ntags: [code]\n---\n\n# coder@1\n\nLearnt from code.\n"
SHAPE = ModelConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=160,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position=256,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "coder"
    torch.manual_seed(0)
    weights.save_model(Transformer(SHAPE), directory, torch.bfloat16)
    train_bpe([CODE], vocab_size=300).save(directory)
    (directory / "lineage.json").write_text(json.dumps({"job": "coder-1"}))
    (directory / "README.md").write_text(CARD)
    (directory / "LICENSE").write_text("do what you like")
    (directory / "notes.txt").write_text("no part of the model")
    return directory
