"""One real server with a small model, and OpenAI's own client for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import openai
import pytest

from llmos.infer.local import LocalEngine
from llmos.serving import standalone
from tests.unit.infer.small import write_model
from tests.unit.openai.world import KEY, listening


@dataclass(frozen=True)
class Served:
    url: str
    engine: LocalEngine


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = write_model(tmp_path_factory.mktemp("model"))
    engine = LocalEngine(directory, dtype="float32", max_batch=4, max_queue=12, runner="torch", threads=1)
    with listening(standalone(engine, "small", KEY)) as url:
        yield Served(url, engine)
    assert not engine.stats()["healthy"]  # the server closed it


@pytest.fixture(scope="session")
def http() -> Iterator[httpx.Client]:
    """One client for many requests, with a key: making one takes longer than a request."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with httpx.Client(headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client
