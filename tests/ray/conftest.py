"""One local cluster for all tests of this tier."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import llmos
from tests.support import running_cluster


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[llmos.Client]:
    with running_cluster(tmp_path_factory.mktemp("home")) as client:
        yield client
