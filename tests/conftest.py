"""What all tests share: how long a test of each tier may take."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TIMEOUT_S = {"ray": 180, "e2e": 600}  # tests/unit: the default in pyproject.toml


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        if tier in TIMEOUT_S and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TIMEOUT_S[tier]))
