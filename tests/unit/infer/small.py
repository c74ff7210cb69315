"""A small model on disk, engines for it, and answers collected whole."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import reduce
from pathlib import Path
from typing import Any

from llmos.infer.engine import Engine
from llmos.infer.local import LocalEngine
from llmos.infer.request import GenerationRequest, SamplingParams, TokenEvent
from llmos.models import train_bpe, weights
from tests.unit.models.small import make

CODE = "class Walk:\n    def step(self, n):\n        for i in range(n):\n            yield i * 2 + 10\n\n" * 3
CONTEXT = 256

_ids = itertools.count()


def write_model(directory: Path) -> Path:
    """A random model that says something else for every prompt, and a tokenizer."""
    tokenizer = train_bpe([CODE, "Größe 漢字 🦙\n"], vocab_size=320)
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    model = make(vocab_size=tokenizer.vocab_size, max_position=CONTEXT, **ends)
    weights.save_model(model, directory)
    tokenizer.save(directory)
    return directory


@asynccontextmanager
async def running(directory: Path, **options: Any) -> AsyncIterator[LocalEngine]:
    """In a thread of this process, by plain torch, unless ``options`` say otherwise."""
    engine = LocalEngine(directory, **{"dtype": "float32", "max_batch": 4, "runner": "torch", "threads": 1, **options})
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)


def request(prompt: tuple[int, ...] = (5, 6, 7), **sampling: Any) -> GenerationRequest:
    defaults = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
    return GenerationRequest(f"r{next(_ids)}", prompt, SamplingParams(**{**defaults, **sampling}))


async def whole(engine: Engine, asked: GenerationRequest) -> TokenEvent:
    """The answer as one event."""
    return reduce(TokenEvent.then, [event async for event in engine.generate(asked)])
