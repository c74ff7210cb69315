"""One vLLM for all tests of this tier: it takes half a minute to start. Run in its environment, by `make test-vllm`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.infer.vllm import VllmEngine
from llmos.models import train_bpe, weights
from tests.unit.infer.contract import ROOM
from tests.unit.infer.small import CODE, CONTEXT
from tests.unit.models.small import make

OPTIONS = {"dtype": "float32", "threads": 1, "memory_bytes": 64 << 20, **ROOM}


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with heads of 32 features, the smallest that vLLM's attention has on a CPU."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = train_bpe([CODE, "Größe 漢字 🦙\n"], vocab_size=320)
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
    weights.save_model(make(vocab_size=tokenizer.vocab_size, max_position=CONTEXT, **heads, **ends), directory)
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="session")
def engine(model_dir: Path) -> Iterator[VllmEngine]:
    made = VllmEngine(model_dir, **OPTIONS)
    yield made
    made.close()
