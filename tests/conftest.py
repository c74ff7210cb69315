"""What all tests share: how long a test of each tier may take, and how many examples Hypothesis tries."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
# A red build is red again when repeated. What is about plan says itself how many examples it takes.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("full", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
# started in the background of a script, pytest and its children would ignore Ctrl-C, which some tests press
signal.signal(signal.SIGINT, signal.default_int_handler)
TIMEOUT_S = {"ray": 180, "e2e": 600, "chaos": 600, "gpu": 300, "vllm": 600}  # tests/unit: the default in pyproject.toml


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        if tier in TIMEOUT_S and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TIMEOUT_S[tier]))
