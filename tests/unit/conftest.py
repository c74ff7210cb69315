"""Unit tests run without Ray: importing it, by whatever detour, fails the test that did it."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def no_ray() -> Iterator[None]:
    """`import ray` raises ModuleNotFoundError ("import of ray halted"), even if Ray was imported before."""
    hidden = {name: module for name, module in sys.modules.items() if name == "ray" or name.startswith("ray.")}
    for name in hidden:
        del sys.modules[name]
    sys.modules["ray"] = None  # type: ignore[assignment]  # what the import system itself takes for "does not exist"
    try:
        yield
    finally:
        del sys.modules["ray"]
        sys.modules.update(hidden)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    with no_ray():
        return (yield)


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with no_ray():
        yield
