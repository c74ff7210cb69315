"""Our engine keeps what every engine promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.infer.local import LocalEngine
from tests.unit.infer.contract import *  # noqa: F403
from tests.unit.infer.contract import ROOM


@pytest.fixture(scope="module", params=["torch", "native"])
def engine(model_dir: Path, request: pytest.FixtureRequest) -> Iterator[LocalEngine]:
    made = LocalEngine(model_dir, dtype="float32", runner=request.param, threads=1, **ROOM)
    yield made
    made.close()
