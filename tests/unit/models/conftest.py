"""What the tests of models share: one thread, one tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from llmos.models import Tokenizer, train_bpe

CODE = "class Walk:\n    def step(self, n):\n        for i in range(n):\n            yield i * 2 + 10\n\n" * 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe([CODE, "Größe 漢字 🦙\n"], vocab_size=320)
